"""From a packed folder to an ordinary 16-bit model folder for stock transformers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tritllm.checkpoint.dequantized_tensor import DecodedMatrix, write_cast, write_decoded
from tritllm.checkpoint.hashes import (
    check_hash,
    check_is_there,
    check_side_file,
    hashed_chunks,
    hashed_tensor,
)
from tritllm.checkpoint.packed import PackedCheckpoint
from tritllm.errors import OutputError, TritError
from tritllm.extras import require
from tritllm.format.names import CONFIG, INDEX
from tritllm.format.safetensors_header import Header
from tritllm.machine import processors
from tritllm.model_card.card import model_card
from tritllm.model_card.licence import licence_notice, read_licence
from tritllm.storage.model_folder import (
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
from tritllm.storage.tensor_sink import TensorSink


def dequantize(
    packed: str | Path,
    out: str | Path,
    *,
    planes: int | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the dequantized model of a packed folder.

    With the defaults every file equals that of the `model/` folder written while quantizing. All
    that `verify` checks is checked while it is read, before the output gets its name; of a run that
    fails nothing is left.

    Args:
        packed: the packed folder.
        out: a folder that does not exist, or is empty.
        planes: read only so many planes of deeper matrices.
        dtype: "float16" or "bfloat16"; default is what the manifest records.
        threads: for decoding; default is the number of processors.
        on_progress: called with tensors done and in all.

    Raises TritError: FormatError for a broken checkpoint, OutputError for the output.
    """
    require("dequantize", "quantize", "huggingface_hub", "yaml")  # for the card, known beforehand
    threads = threads or processors()
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
    side_files = [name for name in manifest["side_files"] if name not in (CONFIG, INDEX)]
    for name in manifest["side_files"]:
        check_is_there(checkpoint, name)
    for name in manifest["side_files"].keys() - side_files:  # not copied, but read
        check_side_file(checkpoint, name)
    partial = out.with_name(f".{out.name}.partial")  # hidden: not a folder a user would make
    with output_errors(partial):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    try:
        headers = model_headers(checkpoint, dtype)
        _write_shards(checkpoint, headers, partial, planes, threads, on_progress)
        sizes = {name: checkpoint.sizes[name] for name in side_files}
        for name, digest in copy_side_files(checkpoint.files, sizes, partial).items():
            check_hash(digest, manifest["side_files"][name], str(checkpoint.folder / name))
        write_config(partial, model_config(checkpoint.config, dtype))
        write_index(partial, headers)
        licence = read_licence(checkpoint.folder)
        notice = licence_notice(licence)
        if notice and "NOTICE" not in side_files:
            write_atomically(partial / "NOTICE", notice.encode())
        card = model_card(manifest, checkpoint.config, licence, "model", planes)
        write_atomically(partial / "README.md", card.encode())
        if out.exists():
            with output_errors(out):
                out.rmdir()
        move_into_place(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # the next run would begin anew
        raise
    return out


def _write_shards(
    checkpoint: PackedCheckpoint,
    headers: dict[str, Header],
    folder: Path,
    planes: int | None,
    threads: int,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    done, total = 0, sum(len(header.entries) for header in headers.values())
    for shard, header in headers.items():
        writer = ShardWriter(folder / shard, header)
        try:
            for name, entry in header.entries.items():
                write_dequantized(checkpoint, writer, name, entry.dtype, planes, threads)
                done += 1
                if on_progress:
                    on_progress(done, total)
            writer.sync()
        finally:
            writer.close()


def model_headers(checkpoint: PackedCheckpoint, dtype: str) -> dict[str, Header]:
    """Headers of the dequantized model's shards by file name."""
    layouts: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {
        file: [] for file in checkpoint.headers
    }
    for name, record in checkpoint.manifest["tensors"].items():
        layout = layouts[record["file"]]
        if part := record.get("slice_of"):
            if name == checkpoint.sliced[part["tensor"]][0][0]:
                layout.append((part["tensor"], model_dtype("F32", dtype), tuple(part["shape"])))
        elif "depth" in record:
            shape = (record["shape"][1], record["in_features"])
            shape = shape[::-1] if record["transposed"] else shape
            layout.append((name, model_dtype("F32", dtype), shape))
        elif "kept" in record:
            layout.append((name, model_dtype(record["dtype"], dtype), tuple(record["shape"])))
    return {file: shard_header(layout) for file, layout in layouts.items()}


def write_dequantized(
    checkpoint: PackedCheckpoint,
    sink: TensorSink,
    name: str,
    dtype: str,
    planes: int | None = None,
    threads: int = 1,
) -> None:
    """Write one tensor of the dequantized model to a sink, as safetensors' `dtype`.

    name: an X.weight, or a tensor whose slices are packed (they are written piece by piece), read
    at its top `planes` planes at most; or a kept tensor.

    Raises FormatError where a SHA-256 differs from the manifest's or a byte is not five trits;
    what was written of the tensor by then must not be used. SourceError where a value does not fit.
    """
    records = checkpoint.manifest["tensors"]
    pieces = checkpoint.sliced.get(name) or ([[name]] if "depth" in records[name] else [])
    for piece in pieces:
        matrices = []
        for matrix in piece:
            depth = records[matrix]["depth"]
            tensor = hashed_tensor(checkpoint, matrix, min(planes or depth, depth))
            part = checkpoint.slice_of(matrix)
            matrices.append(DecodedMatrix(tensor, records[matrix]["transposed"], part))
        write_decoded(sink, name, matrices, dtype, threads)
    if pieces:
        return
    entry = checkpoint.entry(name)
    for offset, chunk in hashed_chunks(checkpoint, name):
        write_cast(sink, entry, offset, chunk, dtype)
