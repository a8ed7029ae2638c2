"""The matrices that a source tensor becomes: one each, or several where it holds experts.

A kind of storage that is none of floats in rows or columns is a subclass of `SourceMatrix` with
`values` of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tritllm.format.dtypes import NUMPY_OF_SAFETENSORS
from tritllm.format.safetensors_header import ITEM_BYTES, TensorEntry
from tritllm.format.slices import MatrixSlice, in_rows, rows_of_piece


@dataclass(frozen=True)
class SourceMatrix:
    """A matrix of a source tensor that is to be packed.

    name: X.weight, under which it is packed. shape: (N, K) = (out_features, in_features).
    source: the tensor that holds it. transposed: whether that has [in_features, out_features].
    slice_of: which part of the tensor it is; None where it is all of it.
    """

    name: str
    shape: tuple[int, int]
    source: TensorEntry
    transposed: bool = False
    slice_of: MatrixSlice | None = None

    @property
    def module(self) -> str:
        """X: the name without `.weight`."""
        return self.name.removesuffix(".weight")

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def piece(self) -> int:
        """The number, from 0, of the equal pieces of the tensor in which it lies."""
        return self.slice_of.index if self.slice_of else 0

    @property
    def made_bytes(self) -> int:
        """Bytes of the array that `values` makes; 0 where it shares the memory of its piece."""
        shares = not self.transposed and self.slice_of is None
        return 0 if shares else ITEM_BYTES[self.source.dtype] * self.size

    def values(self, data: np.ndarray) -> np.ndarray:
        """The weights [N, K], C-contiguous in float16, bfloat16 or float32.

        data: uint8, the bytes of its piece of the tensor, all of the tensor where it has but one.
        """
        stored = data.view(NUMPY_OF_SAFETENSORS[self.source.dtype])
        columns = self.shape[1]
        piece = stored.reshape((columns, -1) if self.transposed else (-1, columns))
        rows = piece.T if self.transposed else piece
        return in_rows(rows_of_piece(rows, self.slice_of))


def whole_matrix(tensor: TensorEntry, transposed: bool = False) -> SourceMatrix:
    """The matrix that a 2-D tensor X.weight is."""
    rows, columns = tensor.shape[::-1] if transposed else tensor.shape
    return SourceMatrix(tensor.name, (rows, columns), tensor, transposed)
