"""Which implementation of the codec runs. All of them give the same bits."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np

from tritllm import native
from tritllm.codec import native_dequantize, native_encode, reference
from tritllm.format import trits
from tritllm.format.layout import groups_of


def is_native() -> bool:
    """Whether the native library does the work."""
    return native.available()


def describe() -> str:
    """The implementation in use, in a line."""
    if native.available():
        return f"native library, {native.describe_isa(native.isa(), native.isas())}"
    return f"NumPy reference, tens of times slower than the native library: {native.load_error()}"


def encode(
    weight: np.ndarray, depths: Sequence[int], codec: str, threads: int
) -> dict[int, reference.Encoded]:
    """As `reference.encode`."""
    if native.available():
        return native_encode.encode(weight, depths, codec, threads)
    _warn_of_reference()
    return reference.encode(weight, depths, codec)


def decode(
    planes: np.ndarray, scale: np.ndarray, steps: np.ndarray, out: np.ndarray, threads: int
) -> None:
    """Decode all given planes of packed rows into out [N, K]; steps float32 [27].

    Raises ValueError for bytes that are no trits.
    """
    if native.available():
        native_dequantize.decode_rows(
            planes, scale, steps, out.shape[1], planes.shape[0], out, threads
        )
        return
    _warn_of_reference()
    for rows in reference.row_blocks(out.shape):
        level = trits.trits_to_levels(trits.unpack_trits(planes[:, rows], out.shape[1]))
        index = trits.unpack_scale_index(scale[rows], groups_of(out.shape[1]))
        with np.errstate(over="ignore"):  # beyond float16's range: infinite, the caller's to check
            out[rows] = reference.decode(level, index, steps).astype(out.dtype)


@cache
def _warn_of_reference() -> None:
    warnings.warn(f"tritllm runs its {describe()}", RuntimeWarning, stacklevel=2)
