"""From a packed folder to an ordinary 16-bit model folder for stock transformers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tritllm.checkpoint.dequantized_tensor import write_cast, write_decoded
from tritllm.checkpoint.packed import PackedCheckpoint
from tritllm.errors import FormatError, OutputError, TritError
from tritllm.format.names import CONFIG, INDEX
from tritllm.format.safetensors_header import Header
from tritllm.model_card.card import model_card
from tritllm.model_card.licence import licence_notice, read_licence
from tritllm.storage.model_folder import (
    CHUNK_BYTES,
    copy_side_files,
    model_config,
    model_dtype,
    move_into_place,
    shard_header,
    write_config,
    write_index,
)
from tritllm.storage.output_errors import output_errors
from tritllm.storage.shard_writer import ShardWriter, write_atomically


def dequantize(
    packed: str | Path,
    out: str | Path,
    *,
    planes: int | None = None,
    dtype: str | None = None,
    threads: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the dequantized model of a packed folder.

    With the defaults every file equals that of the `model/` folder written while quantizing.

    Args:
        packed: the packed folder.
        out: a folder that does not exist, or is empty.
        planes: read only so many planes of deeper matrices.
        dtype: "float16" or "bfloat16"; default is what the manifest records.
        threads: for decoding.
        on_progress: called with tensors done and in all.

    Raises TritError: FormatError for a broken checkpoint, OutputError for the output.
    """
    out = Path(os.path.abspath(out))
    checkpoint = PackedCheckpoint(packed)
    manifest = checkpoint.manifest
    deepest = max(manifest["tensors"][name]["depth"] for name in checkpoint.quantized)
    if planes is not None and not 1 <= planes <= deepest:
        raise TritError(f"{packed}: holds {deepest} planes, --planes {planes} is not 1..{deepest}")
    if dtype not in (None, "float16", "bfloat16"):
        raise TritError(f"--dtype takes float16 or bfloat16, not {dtype!r}")
    dtype = dtype or manifest["dequantized_dtype"]
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: exists and is not empty; choose another folder")
    if checkpoint.folder.resolve() in out.resolve().parents:
        raise OutputError(f"{out}: lies in the packed folder; choose another")
    partial = out.with_name(f".{out.name}.partial")  # hidden: not a folder a user would make
    with output_errors(partial):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)

    headers = model_headers(checkpoint, dtype)
    done, total = 0, sum(len(header.entries) for header in headers.values())
    for shard, header in headers.items():
        writer = ShardWriter(partial / shard, header)
        try:
            for name in header.entries:
                _write_tensor(checkpoint, writer, name, planes, threads)
                done += 1
                if on_progress:
                    on_progress(done, total)
            writer.sync()
        finally:
            writer.close()

    sizes = checkpoint.files.sizes()
    missing = [name for name in manifest["side_files"] if name not in sizes]
    if missing:
        raise FormatError(f"{checkpoint.folder / missing[0]}: missing")
    side_files = {
        name: sizes[name] for name in manifest["side_files"] if name not in (CONFIG, INDEX)
    }
    copy_side_files(checkpoint.files, side_files, partial)
    write_config(partial, model_config(checkpoint.config, dtype))
    write_index(partial, headers)
    licence = read_licence(checkpoint.folder)
    notice = licence_notice(licence)
    if notice and "NOTICE" not in side_files:
        write_atomically(partial / "NOTICE", notice.encode())
    card = model_card(manifest, checkpoint.config, licence, "model", planes)
    write_atomically(partial / "README.md", card.encode())
    if out.exists():
        out.rmdir()
    move_into_place(partial, out)
    return out


def model_headers(checkpoint: PackedCheckpoint, dtype: str) -> dict[str, Header]:
    """Headers of the dequantized model's shards by file name."""
    layouts: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {
        file: [] for file in checkpoint.headers
    }
    for name, record in checkpoint.manifest["tensors"].items():
        layout = layouts[record["file"]]
        if "depth" in record:
            shape = (record["shape"][1], record["in_features"])
            shape = shape[::-1] if record["transposed"] else shape
            layout.append((name, model_dtype("F32", dtype), shape))
        elif "kept" in record:
            layout.append((name, model_dtype(record["dtype"], dtype), tuple(record["shape"])))
    return {file: shard_header(layout) for file, layout in layouts.items()}


def _write_tensor(
    checkpoint: PackedCheckpoint, writer: ShardWriter, name: str, planes: int | None, threads: int
) -> None:
    target = writer.header.entries[name].dtype
    record = checkpoint.manifest["tensors"][name]
    if "depth" in record:
        keep = min(planes or record["depth"], record["depth"])
        tensor = checkpoint.tensor(name, keep)
        write_decoded(writer, name, tensor, target, record["transposed"], threads)
        return
    entry = checkpoint.entry(name)
    for offset in range(0, entry.nbytes, CHUNK_BYTES):
        chunk = checkpoint.read_range(name, offset, min(CHUNK_BYTES, entry.nbytes - offset))
        write_cast(writer, entry, offset, chunk, target)
