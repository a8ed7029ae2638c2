"""Proof that a packed folder was made of a source: its weights beside the source's, one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tritllm.checkpoint.packed import PackedCheckpoint
from tritllm.codec import TritTensor, to_decibel
from tritllm.errors import FormatError
from tritllm.format.records import TRAINED
from tritllm.format.safetensors_header import TensorEntry
from tritllm.format.slices import MatrixSlice
from tritllm.machine import processors
from tritllm.quantizer.decisions import Decision, PlannedTensor
from tritllm.quantizer.matrices import SourceMatrix, whole_matrix
from tritllm.quantizer.source import Source, SourceShard, open_source
from tritllm.quantizer.ternary_source import ternary_source
from tritllm.storage.model_files import open_files
from tritllm.storage.model_folder import CHUNK_BYTES

_NEAR = 1e-3  # relative: errors in the manifest are sums of float32


@dataclass(frozen=True)
class Compared:
    """What was compared with the source.

    matrices: how many are packed; exact: of these, how many have every weight of the source to the
    bit, and so every trit of one that is ternary. lowest_sqnr_db: of the others; None without any.
    kept: tensors that are the source's byte for byte. trained: those that are not, as the manifest
    says.
    """

    matrices: int
    exact: int
    lowest_sqnr_db: float | None
    kept: int
    trained: int


def verify_source(
    folder: str | Path,
    source: str,
    *,
    revision: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Compared:
    """Compare a packed folder with the model that it was made of, every weight.

    Shards have the SHA-256 that the manifest states; each matrix is decoded at all planes and has
    the error that the manifest states; kept tensors are equal byte for byte. A tensor is in memory
    at a time. `verify` is not done here.

    source: local folder or Hub id. on_progress: called with tensors done and in all.

    Raises FormatError with the first difference, SourceError for a source that cannot be read.
    """
    checkpoint = PackedCheckpoint(folder)
    files = open_source(open_files(source, revision, stream=not Path(source).is_dir()))
    _check_shards(checkpoint, files)
    where = files.stored
    planned = _matrices(checkpoint, files, {name: entry for name, (_, entry) in where.items()})
    total, done = len(planned) + len(checkpoint.kept), 0
    exact, lossy, trained = 0, [], 0
    for tensor in planned:
        shard = where[tensor.entry.name][0].name
        for part in tensor.parts:
            data = np.frombuffer(files.files.read(shard, part.begin, part.nbytes), np.uint8)
            for matrix in part.matrices:
                nmse = _compare(checkpoint, matrix, matrix.values(data))
                exact += nmse == 0
                lossy += [nmse] if nmse else []
        done += 1
        if on_progress:
            on_progress(done, total)
    for name in checkpoint.kept:
        if checkpoint.manifest["tensors"][name]["kept"].endswith(TRAINED):
            trained += 1
        else:
            _compare_kept(checkpoint, files, name, where.get(name))
        done += 1
        if on_progress:
            on_progress(done, total)
    lowest = to_decibel(max(lossy)) if lossy else None
    return Compared(exact + len(lossy), exact, lowest, len(checkpoint.kept) - trained, trained)


def _check_shards(checkpoint: PackedCheckpoint, source: Source) -> None:
    stated = checkpoint.manifest["source"]["shards"]
    if {shard.name for shard in source.shards} != stated.keys():
        raise FormatError(
            f"{checkpoint.folder}: was not made of these shards of {source.files.name}"
        )
    for shard in source.shards:
        digest = hashlib.sha256()
        for offset in range(0, shard.size, CHUNK_BYTES):
            length = min(CHUNK_BYTES, shard.size - offset)
            digest.update(source.files.read(shard.name, offset, length))
        if digest.hexdigest() != stated[shard.name]:
            raise FormatError(
                f"{checkpoint.folder}: was not made of {source.files.name}: the SHA-256 of its "
                f"{shard.name} is not the manifest's"
            )


def _matrices(
    checkpoint: PackedCheckpoint, source: Source, entries: dict[str, TensorEntry]
) -> list[PlannedTensor]:
    """The source's tensors that are packed, with their matrices."""
    ternary = ternary_source(source)
    found: dict[str, list[SourceMatrix]] = {}
    for name in checkpoint.quantized:
        record: dict[str, Any] = checkpoint.manifest["tensors"][name]
        slice_of = MatrixSlice.of_record(record["slice_of"]) if "slice_of" in record else None
        stored = slice_of.tensor if slice_of else name
        if stored not in entries:
            raise FormatError(
                f"{checkpoint.where(name)}: {source.files.name} has no tensor {stored}"
            )
        entry, transposed = entries[stored], bool(record["transposed"])
        if ternary and name in ternary.matrices:
            matrix = ternary.matrices[name]
        elif slice_of:
            shape = record["shape"][1], record["in_features"]
            matrix = SourceMatrix(name, shape, entry, transposed, slice_of)
        else:
            matrix = whole_matrix(entry, transposed)
        if matrix.shape != (record["shape"][1], record["in_features"]):
            raise FormatError(f"{checkpoint.where(name)}: has another shape in {source.files.name}")
        found.setdefault(stored, []).append(matrix)
    return [
        PlannedTensor(entries[stored], Decision("packed", tuple(matrices)))
        for stored, matrices in found.items()
    ]


def _compare(checkpoint: PackedCheckpoint, matrix: SourceMatrix, values: np.ndarray) -> float:
    """The error over the energy; 0 where every weight is the source's to the bit."""
    packed: TritTensor = checkpoint.tensor(matrix.name)
    decoded = packed.decode(threads=processors())
    wide = values.astype(np.float32)
    if np.array_equal(decoded, wide):
        nmse = 0.0
    else:
        missed = ((wide.astype(np.float64) - decoded) ** 2).sum()
        nmse = float(missed / (wide.astype(np.float64) ** 2).sum())
    stated = checkpoint.manifest["tensors"][matrix.name]["nmse"]
    if abs(nmse - stated) > _NEAR * stated:
        raise FormatError(
            f"{checkpoint.where(matrix.name)}: its error over the source's weights is {nmse:.3g}, "
            f"and the manifest states {stated:.3g}"
        )
    return nmse


def _compare_kept(
    checkpoint: PackedCheckpoint,
    source: Source,
    name: str,
    stored: tuple[SourceShard, TensorEntry] | None,
) -> None:
    entry = checkpoint.entry(name)
    if stored is None or (stored[1].dtype, stored[1].shape) != (entry.dtype, entry.shape):
        raise FormatError(f"{checkpoint.where(name)}: is not such a tensor in {source.files.name}")
    for offset in range(0, entry.nbytes, CHUNK_BYTES):
        length = min(CHUNK_BYTES, entry.nbytes - offset)
        theirs = source.files.read(stored[0].name, stored[1].begin + offset, length)
        if checkpoint.read_range(name, offset, length) != theirs:
            raise FormatError(f"{checkpoint.where(name)}: differs from {source.files.name}")
