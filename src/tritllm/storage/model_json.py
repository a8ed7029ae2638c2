"""The JSON files of a model folder: config.json, the index and tritllm.json, read in one way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tritllm.errors import FormatError
from tritllm.format.json_object import parse_object
from tritllm.format.manifest import no_manifest, parse_manifest
from tritllm.format.names import CONFIG, MANIFEST
from tritllm.storage.model_files import ModelFiles

MOST_BYTES = 128 << 20  # of one such file: a manifest of four hundred thousand tensors


def read_small_file(files: ModelFiles, sizes: Mapping[str, int], name: str) -> bytes:
    """All bytes of a file of at most 128 MiB.

    sizes: `files.sizes()`, which lists regular files alone: no device and no pipe is opened.

    Raises FormatError where it is missing or larger, and what `files.read` raises.
    """
    if name not in sizes:
        raise FormatError(f"{files.name}/{name}: missing, or not a regular file")
    if sizes[name] > MOST_BYTES:
        raise FormatError(f"{files.name}/{name}: {sizes[name]} bytes, more than {MOST_BYTES}")
    return files.read(name, 0, sizes[name])


def read_json(files: ModelFiles, sizes: Mapping[str, int], name: str) -> dict[str, Any]:
    """The JSON object in a file. Raises FormatError as `read_small_file` and `parse_object`."""
    return parse_object(read_small_file(files, sizes, name), f"{files.name}/{name}")


def read_manifest(files: ModelFiles, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The content of tritllm.json, checked as `parse_manifest` says.

    Raises FormatError where it is missing too (the checkpoint is not packed, or incomplete).
    """
    if MANIFEST in sizes:
        return parse_manifest(read_small_file(files, sizes, MANIFEST), f"{files.name}/{MANIFEST}")
    try:
        config = read_json(files, sizes, CONFIG)
    except FormatError:
        config = {}
    raise no_manifest(files.name, config)
