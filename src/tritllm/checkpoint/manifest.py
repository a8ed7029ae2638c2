"""tritllm.json: what a packed folder holds, and the proof of it. Written last, atomically."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema

from tritllm.checkpoint.source import MANIFEST
from tritllm.errors import FormatError

FORMAT_VERSION = 1


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of tritllm.json, as published in docs/."""
    text = (files("tritllm.checkpoint") / "tritllm.schema.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check tritllm.json.

    Raises FormatError if it is missing (the checkpoint is not packed, or incomplete), of a newer
    format version, or does not follow the schema.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FormatError(f"{folder}: no {MANIFEST}; not a packed checkpoint, or an incomplete one")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise FormatError(f"{path}: not valid JSON ({error})") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise FormatError(
            f"{path}: format version {version} is newer than {FORMAT_VERSION}; upgrade tritllm"
        )
    fault = jsonschema.exceptions.best_match(
        jsonschema.Draft202012Validator(schema()).iter_errors(manifest)
    )
    if fault:
        raise FormatError(f"{path}: {fault.json_path}: {fault.message.splitlines()[0][:200]}")
    result: dict[str, Any] = manifest
    return result


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """Serialised in one way only, so that equal manifests are equal files."""
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()
