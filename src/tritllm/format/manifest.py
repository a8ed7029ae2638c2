"""tritllm.json: what a packed folder holds, and the proof of it. Written last, atomically."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema

from tritllm.errors import FormatError
from tritllm.format.names import CONFIG, MANIFEST

FORMAT_VERSION = 1
METHOD = "tritllm"  # quant_method in config.json
_ZEROS = "0" * 64  # stand in for the file's own hash while it is computed


# 2.0 is an integer to JSON schema, but no size to Python.
_VALIDATOR = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: type(value) is int
    ),
)


@cache
def schema() -> dict[str, Any]:
    """The JSON schema of tritllm.json, as published in docs/."""
    text = (files("tritllm.format") / "tritllm.schema.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check tritllm.json.

    Raises FormatError if it is missing (the checkpoint is not packed, or incomplete), of a newer
    format version, or does not follow the schema.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise no_manifest(str(folder), read_config(folder))
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not valid JSON ({error})") from None
    return check_manifest(manifest, str(path))


def no_manifest(where: str, config: Any) -> FormatError:
    """The refusal of a folder without tritllm.json, by what its config.json says it is.

    transformers' save_pretrained writes packed tensors but no manifest, and none can be made
    afterwards: what it claims of the source and of the encoder's error is not in the files.
    """
    if says_packed(config):
        return FormatError(
            f"{where}: packed, but without {MANIFEST}: saved by transformers, or incomplete; what "
            "it holds cannot be proven, use the folder that tritllm quantize wrote"
        )
    return FormatError(f"{where}: no {MANIFEST}; not a packed checkpoint, or an incomplete one")


def says_packed(config: Any) -> bool:
    """Whether the content of a config.json says that the weights are packed."""
    stored = config.get("quantization_config") if isinstance(config, dict) else None
    return isinstance(stored, dict) and stored.get("quant_method") == METHOD


def read_config(folder: Path) -> Any:
    """The content of a folder's config.json; None where there is none that can be read."""
    try:
        return json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def check_manifest(manifest: Any, where: str) -> dict[str, Any]:
    """The parsed content of a tritllm.json, checked as `read_manifest` says."""
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise FormatError(
            f"{where}: format version {version} is newer than {FORMAT_VERSION}; upgrade tritllm"
        )
    fault = jsonschema.exceptions.best_match(_VALIDATOR(schema()).iter_errors(manifest))
    if fault:
        text = f"{fault.json_path}: {fault.message}"[:300]  # quotes what the file holds
        text = "".join(c if c.isprintable() else " " for c in text)
        raise FormatError(f"{where}: {text}")
    if not any("depth" in tensor for tensor in manifest["tensors"].values()):
        raise FormatError(f"{where}: names no quantized weight")
    result: dict[str, Any] = manifest
    return result


def manifest_bytes(manifest: dict[str, Any]) -> bytes:
    """Serialised in one way only, so that equal manifests are equal files; `sha256` is put in."""
    unsigned = {"sha256": _ZEROS} | manifest | {"sha256": _ZEROS}  # first, whether new or not
    text = (json.dumps(unsigned, indent=1, ensure_ascii=False) + "\n").encode()
    return text.replace(_ZEROS.encode(), hashlib.sha256(text).hexdigest().encode(), 1)


def is_unchanged(text: bytes, sha256: str) -> bool:
    """Whether the bytes of a tritllm.json are those that its `sha256` was computed from."""
    unsigned = text.replace(sha256.encode(), _ZEROS.encode(), 1)
    return hashlib.sha256(unsigned).hexdigest() == sha256
