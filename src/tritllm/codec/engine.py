"""Which implementation of the codec runs. All of them give the same bits."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np

from tritllm import native
from tritllm.codec import native_dequantize, reference
from tritllm.codec.groups import row_blocks
from tritllm.format import trits
from tritllm.format.layout import groups_of


def is_native() -> bool:
    """Whether the native library does the work."""
    return native.available()


def check_environment() -> None:
    """Raise TritError where `TRITLLM_ISA` asks for what cannot be, before any work is begun."""
    if is_native():
        native.isa()


def describe() -> str:
    """The implementation in use, in a line."""
    if native.available():
        return f"native library, {native.describe_isa('codec')}"
    return f"NumPy reference, tens of times slower than the native library: {native.load_error()}"


def dequantize_rows(
    planes: np.ndarray, scale: np.ndarray, steps: np.ndarray, out: np.ndarray, threads: int
) -> None:
    """Dequantize packed rows, all given planes of them, into out [N, K]; steps float32 [27].

    Raises ValueError for a byte that is not five trits, and for padding that is not zero.
    """
    if native.available():
        native_dequantize.dequantize_rows(
            planes, scale, steps, out.shape[1], planes.shape[0], out, threads
        )
        return
    warn_of_reference()
    for rows in row_blocks(out.shape):
        level = trits.trits_to_levels(trits.unpack_trits(planes[:, rows], out.shape[1]))
        index = trits.unpack_scale_index(scale[rows], groups_of(out.shape[1]))
        with np.errstate(over="ignore"):  # beyond float16's range: infinite, the caller's to check
            out[rows] = reference.dequantize(level, index, steps).astype(out.dtype)


@cache
def warn_of_reference() -> None:
    """Say, once a process, that the slow implementation runs."""
    warnings.warn(f"tritllm runs its {describe()}", RuntimeWarning, stacklevel=2)
