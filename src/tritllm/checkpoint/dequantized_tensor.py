"""Tensors of the dequantized model: decoded or cast piece by piece into a sink."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tritllm.codec import TritTensor
from tritllm.errors import SourceError
from tritllm.format.dtypes import NUMPY_OF_SAFETENSORS, cast_checked
from tritllm.format.safetensors_header import ITEM_BYTES, TensorEntry
from tritllm.format.slices import MatrixSlice, in_rows, rows_of_piece
from tritllm.storage.tensor_sink import TensorSink

_BLOCK_WEIGHTS = 1 << 21  # decoded at a time


def write_cast(
    sink: TensorSink, entry: TensorEntry, position: int, chunk: bytes | memoryview, dtype: str
) -> None:
    """Write a kept tensor's bytes from `position` of its source bytes, cast to `dtype`.

    Raises SourceError where a finite value does not fit.
    """
    if dtype == entry.dtype:
        sink.write(entry.name, position, chunk)
        return
    try:
        cast = cast_checked(np.frombuffer(chunk, NUMPY_OF_SAFETENSORS[entry.dtype]), dtype)
    except OverflowError as error:
        raise SourceError(
            f"{sink.where}: tensor {entry.name}: {error}; use --dtype bfloat16"
        ) from None
    offset = position // ITEM_BYTES[entry.dtype] * ITEM_BYTES[dtype]
    sink.write(entry.name, offset, memoryview(cast.view(np.uint8)))


@dataclass(frozen=True)
class DecodedMatrix:
    """A matrix and where it goes in the model's tensor.

    transposed: the model stores [in_features, out_features]. slice_of: the part of the tensor that
    it is; None where it is all of it.
    """

    packed: TritTensor
    transposed: bool
    slice_of: MatrixSlice | None = None


def write_decoded(
    sink: TensorSink, name: str, matrices: Sequence[DecodedMatrix], dtype: str, threads: int
) -> None:
    """Decode the matrices of one piece of tensor `name` into it.

    matrices: all that the piece has; one, of all of the tensor, where it has no pieces. Rows that
    lie together in the model are decoded a block at a time, else the piece is put together.

    Raises SourceError where a decoded weight does not fit the dtype.
    """
    slices = [matrix.slice_of for matrix in matrices]
    weights = sum(math.prod(matrix.packed.shape) for matrix in matrices)
    columns = matrices[0].packed.shape[1]
    first = weights * slices[0].index if slices[0] else 0
    item = ITEM_BYTES[dtype]
    together = all(part is None or part.rows[2] == 1 for part in slices)
    if together and not matrices[0].transposed:
        for matrix in matrices:
            begin = matrix.slice_of.rows[0] if matrix.slice_of else 0
            for row, values in _decoded_blocks(sink, name, matrix.packed, dtype, threads):
                offset = item * (first + (begin + row) * columns)
                sink.write(name, offset, memoryview(values.view(np.uint8)).cast("B"))
        return
    piece = np.empty((weights // columns, columns), NUMPY_OF_SAFETENSORS[dtype])
    for matrix in matrices:
        place = rows_of_piece(piece, matrix.slice_of)
        for row, values in _decoded_blocks(sink, name, matrix.packed, dtype, threads):
            place[row : row + len(values)] = values
    stored = in_rows(piece.T if matrices[0].transposed else piece)
    sink.write(name, item * first, memoryview(stored.view(np.uint8)).cast("B"))


def _decoded_blocks(
    sink: TensorSink, name: str, packed: TritTensor, dtype: str, threads: int
) -> Iterator[tuple[int, np.ndarray]]:
    """The first row of each block of rows, and the values."""
    out_features, in_features = packed.shape
    block = max(1, _BLOCK_WEIGHTS // in_features)
    for start in range(0, out_features, block):
        rows = packed.rows(start, min(start + block, out_features))
        values = rows.decode(None, NUMPY_OF_SAFETENSORS[dtype], threads)
        if not np.isfinite(values.astype(np.float32)).all():
            raise SourceError(
                f"{sink.where}: tensor {name}: a decoded weight does not fit {values.dtype}; "
                "use --dtype bfloat16"
            )
        yield start, np.ascontiguousarray(values)
