"""Source tensors that hold several matrices: which of them a packed matrix is.

A mixture's experts may be stored as one tensor. Its bytes are then equal pieces, one an expert, and
a piece has the rows of one matrix or of several (gate and up), one after the other or alternating:
[R, K], or [K, R] where the source stores [in_features, out_features].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_BLOCK = (1024, 16)  # rows and columns copied together


@dataclass(frozen=True)
class MatrixSlice:
    """`slice_of` in the record of a matrix X.weight.

    tensor, shape: the source tensor. index: the piece, from 0. rows: start, stop and step of the
    matrix' rows among the R of its piece.
    """

    tensor: str
    shape: tuple[int, ...]
    index: int
    rows: tuple[int, int, int]

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> MatrixSlice:
        """From the JSON object, which follows the schema."""
        return cls(record["tensor"], tuple(record["shape"]), record["index"], tuple(record["rows"]))

    def as_record(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "tensor": self.tensor,
            "shape": list(self.shape),
            "index": self.index,
            "rows": list(self.rows),
        }


def rows_of_piece(rows: np.ndarray, part: MatrixSlice | None) -> np.ndarray:
    """The matrix [N, K] of the rows [R, K] of a piece, all of them for None; it shares memory."""
    return rows if part is None else rows[slice(*part.rows)]


def in_rows(matrix: np.ndarray) -> np.ndarray:
    """The matrix, C-contiguous; shares memory where it is so already.

    A transposed one is copied block by block, each of which the processor's cache holds. Blocks are
    tall: a row of the source, which is a column here, is read from beginning to end.
    """
    bits = matrix.view(f"u{matrix.itemsize}")  # NumPy copies its own types faster than bfloat16
    if matrix.strides[1] == matrix.itemsize:
        return np.ascontiguousarray(bits).view(matrix.dtype)
    copy = np.empty(bits.shape, bits.dtype)
    for column in range(0, bits.shape[1], _BLOCK[1]):
        for row in range(0, len(bits), _BLOCK[0]):
            block = slice(row, row + _BLOCK[0]), slice(column, column + _BLOCK[1])
            copy[block] = bits[block]
    return copy.view(matrix.dtype)
