"""Manifests of models that are too large to make, or named as a test wants."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tritllm.format.manifest import manifest_bytes
from tritllm.format.names import CONFIG, MANIFEST

_FILE = {"file": "model.safetensors", "sha256": "0" * 64}


def quantized(
    name: str, rows: int, columns: int, depth: int, nmse: float
) -> dict[str, dict[str, Any]]:
    """The records of one packed matrix, whose module is `name`."""
    weight = f"{name}.weight"
    planes = {"dtype": "U8", "shape": [depth, rows, -(-columns // 16) * 4], "depth": depth}
    planes |= {"in_features": columns, "transposed": False, "nmse": nmse}
    return {
        weight: _FILE | planes,
        f"{weight}_scale": _FILE | {"dtype": "U8", "shape": [rows, columns // 16]}
        | {"part_of": weight},
        f"{weight}_codebook": _FILE | {"dtype": "F32", "shape": [depth, 27], "part_of": weight},
    }  # fmt: skip


def kept(name: str, shape: Iterable[int], reason: str) -> dict[str, dict[str, Any]]:
    """The record of a tensor that is not quantized."""
    return {name: _FILE | {"dtype": "BF16", "shape": list(shape), "kept": reason}}


def manifest(tensors: dict[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A manifest that follows the schema; more: its other fields."""
    return {
        "format_version": 1,
        "tool": "tritllm 0",
        "codec": "v3",
        "config": "mixed",
        "command": "tritllm quantize",
        "group_size": 16,
        "source": {"model": "owner/model", "revision": None, "shards": {}},
        "dequantized_dtype": "bfloat16",
        "headers": {},
        "tensors": tensors,
        "not_stored": {},
        "side_files": {},
    } | more


def write_manifest(folder: Path, content: dict[str, Any]) -> Path:
    """A folder with a manifest and nothing that it names."""
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_bytes(manifest_bytes(content))
    (folder / CONFIG).write_text(json.dumps({"model_type": "llama"}))
    return folder
