"""What every model folder has beside its shards' bytes, built the same way wherever written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tritllm.errors import OutputError
from tritllm.format.dtypes import NUMPY_OF_SAFETENSORS, SAFETENSORS_OF_NAME
from tritllm.format.names import CONFIG, INDEX, SINGLE
from tritllm.format.safetensors_header import ITEM_BYTES, Header, build_header
from tritllm.storage.model_files import ModelFiles
from tritllm.storage.output_errors import output_errors
from tritllm.storage.shard_writer import sync_folder, write_atomically

CHUNK_BYTES = 16 << 20  # files and kept tensors pass through in pieces of this size


def shard_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> Header:
    """Lay out (name, dtype, shape), wide items first as the safetensors library does.

    Every tensor is then aligned to its item; among items of a size the given order stays.
    """
    return build_header(sorted(tensors, key=lambda item: -ITEM_BYTES[item[1]]), {"format": "pt"})


def model_dtype(dtype: str, float_dtype: str) -> str:
    """Safetensors dtype in the dequantized model: floats become `float_dtype`, the rest stays."""
    return SAFETENSORS_OF_NAME[float_dtype] if dtype in NUMPY_OF_SAFETENSORS else dtype


def model_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """config.json of the dequantized model."""
    content = {key: value for key, value in config.items() if key != "quantization_config"}
    content["torch_dtype" if "torch_dtype" in content else "dtype"] = dtype
    return content


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write config.json."""
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / CONFIG, text.encode())


def write_index(folder: Path, headers: Mapping[str, Header]) -> None:
    """Write the index; a single model.safetensors needs none."""
    if set(headers) == {SINGLE}:
        return
    weight_map, total = {}, 0
    for shard, header in headers.items():
        for name, entry in header.entries.items():
            weight_map[name] = shard
            total += entry.nbytes
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_atomically(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())


def check_shards(folder: Path, headers: Mapping[str, Header]) -> None:
    """Raise OutputError if a shard finished earlier has gone, or changed its size, since."""
    for shard, header in headers.items():
        path = folder / shard
        if not path.is_file() or path.stat().st_size != header.file_bytes:
            raise OutputError(
                f"{path}: gone or changed since it was written; delete the output and start again"
            )


def copy_side_files(files: ModelFiles, sizes: Mapping[str, int], folder: Path) -> dict[str, str]:
    """Copy files unchanged; returns their SHA-256 by name."""
    hashes = {}
    for name, size in sizes.items():
        target = folder / name
        digest = hashlib.sha256()
        with output_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "wb") as file:
                for offset in range(0, size, CHUNK_BYTES):
                    chunk = files.read(name, offset, min(CHUNK_BYTES, size - offset))
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
        hashes[name] = digest.hexdigest()
    return hashes


def move_into_place(partial: Path, final: Path) -> None:
    """Turn a finished `*.partial` folder into the final one, durably."""
    with output_errors(final):
        sync_folder(partial)
        os.replace(partial, final)
        sync_folder(final.parent)
