"""TritTensor: one quantized matrix in memory, in the very arrays the file stores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tritllm.codec import engine
from tritllm.codec.arguments import (
    checked_array,
    checked_depth,
    checked_integer,
    checked_threads,
)
from tritllm.format import cut, trits
from tritllm.format.dtypes import FLOAT_DTYPES
from tritllm.format.layout import groups_of, packed_shapes


@dataclass(frozen=True, eq=False)
class TritTensor:
    """A matrix [out_features, in_features] = [N, K] as balanced ternary digits and scale indices.

    Attributes:
        weight: uint8 [d, N, ceil(K/5)], trit planes, most significant first, five trits a byte.
        scale: uint8 [N, ceil(3G/5)], the G = ceil(K/16) scale indices of each row.
        codebook: float32 [d, 27]; row r-1 holds the steps that apply when r planes are read.
        in_features: K, which the packed arrays do not tell.
        error: sum of (w - w_hat)**2 over the matrix, float64; None for a tensor read from a file.
        energy: sum of w**2, float64; None for a tensor read from a file.
        ternary: whether the matrix was ternary before, and kept its trits (`encode_source`).

    Raises ValueError on construction where an array's dtype or shape does not follow from N, K and
    d, or a row of the codebook is negative, not finite or not ascending.
    """

    weight: np.ndarray
    scale: np.ndarray
    codebook: np.ndarray
    in_features: int
    error: float | None = None
    energy: float | None = None
    ternary: bool = False

    def __post_init__(self) -> None:
        arrays = (self.weight, self.scale, self.codebook)
        names = ("planes", "scale indices", "codebook")
        for what, array in zip(names, arrays, strict=True):
            checked_array(what, array)
        if self.weight.ndim != 3 or 0 in self.weight.shape[1:]:
            raise ValueError(
                f"planes have shape {list(self.weight.shape)}, expected [d, N, ceil(K/5)]"
            )
        depth = checked_depth(self.weight.shape[0])
        in_features = checked_integer("in_features", self.in_features)
        object.__setattr__(self, "in_features", in_features)  # an int, also where NumPy's is given
        shapes = packed_shapes(self.weight.shape[1], in_features, depth)
        dtypes = (np.uint8, np.uint8, np.float32)
        for what, array, shape, dtype in zip(names, arrays, shapes, dtypes, strict=True):
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"{what} are {array.dtype} {list(array.shape)}, "
                    f"expected {np.dtype(dtype)} {list(shape)}"
                )
        if not np.isfinite(self.codebook).all():
            raise ValueError("codebook holds a value that is not finite")
        if (self.codebook < 0).any() or (np.diff(self.codebook, axis=1) < 0).any():
            raise ValueError("codebook is not ascending from zero or above")

    @property
    def depth(self) -> int:
        """Trits a weight, 1..4."""
        return self.weight.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return self.weight.shape[1], self.in_features

    @property
    def nbytes(self) -> int:
        """Bytes of the three arrays, as in the file."""
        return self.weight.nbytes + self.scale.nbytes + self.codebook.nbytes

    @property
    def bits_per_weight(self) -> float:
        """File bits a weight: planes, scale indices and codebook."""
        return 8 * self.nbytes / math.prod(self.shape)

    @property
    def nmse(self) -> float | None:
        """Error / energy; 0 for a matrix of zeros."""
        if self.error is None or self.energy is None:
            return None
        return self.error / self.energy if self.energy else 0.0

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantization noise, 10 log10(energy / error) dB; inf where the error is 0."""
        nmse = self.nmse
        return None if nmse is None else to_decibel(nmse)

    def trits(self, planes: int | None = None) -> np.ndarray:
        """int8 [planes, N, K] in {-1, 0, 1}, most significant plane first."""
        return trits.unpack_trits(self.weight[: self._planes(planes)], self.in_features)

    def levels(self, planes: int | None = None) -> np.ndarray:
        """int8 [N, K]: the levels that the top `planes` planes hold, in [-L, L]."""
        return trits.trits_to_levels(self.trits(planes))

    def scale_index(self) -> np.ndarray:
        """uint8 [N, G], 0..26."""
        return trits.unpack_scale_index(self.scale, groups_of(self.in_features))

    def check_bytes(self) -> None:
        """Raise ValueError where a byte is not five trits, or padding is not zero."""
        groups = groups_of(self.in_features)
        trits.check_trits(self.weight, self.in_features)
        trits.check_trits(self.scale, 3 * groups)

    def rows(self, start: int, stop: int) -> TritTensor:
        """The rows start..stop-1, sharing memory. Raises ValueError unless 0 <= start < stop <= N.

        `error` and `energy` of a part are None.
        """
        weight, scale = cut.cut_rows(self.weight, self.scale, start, stop)
        return TritTensor(weight, scale, self.codebook, self.in_features)

    def columns(self, start: int, stop: int) -> TritTensor:
        """The columns start..stop-1, a matrix of in_features = stop - start with every row.

        Shares memory where both ends are multiples of 80 or the row's end, else the trits are
        packed anew. `error` and `energy` of a part are None.

        Raises ValueError unless 0 <= start < stop <= K, start is a multiple of 16, and stop is one
        or is K; where trits are packed anew, also for bytes that are no trits.
        """
        weight, scale = cut.cut_columns(self.weight, self.scale, self.in_features, start, stop)
        return TritTensor(weight, scale, self.codebook, stop - start)

    def decode(
        self, planes: int | None = None, dtype: np.typing.DTypeLike = np.float32, threads: int = 1
    ) -> np.ndarray:
        """Weights [N, K] of `dtype` (float16, bfloat16 or float32) from the top `planes` planes.

        float32(level) * step is rounded once, and once more to `dtype`, half to even; a value
        beyond float16's range becomes infinite. Raises ValueError for planes outside 1..d, another
        dtype, or bytes that are no trits.
        """
        out = np.empty(self.shape, dtype)
        if out.dtype not in FLOAT_DTYPES:
            raise ValueError(f"dtype {out.dtype} is not one of float16, bfloat16, float32")
        threads = checked_threads(threads)
        planes = self._planes(planes)
        steps = self.codebook[planes - 1]
        engine.dequantize_rows(self.weight[:planes], self.scale, steps, out, threads)
        return out

    def _planes(self, planes: int | None) -> int:
        if planes is None:
            return self.depth
        return checked_integer("planes", planes, self.depth)


def to_decibel(nmse: float) -> float:
    """Signal to quantization noise in dB of a normalized mean squared error."""
    return -10 * math.log10(nmse) if nmse else math.inf
