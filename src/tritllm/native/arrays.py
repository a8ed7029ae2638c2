"""NumPy arrays as the library sees them."""

from __future__ import annotations

import numpy as np

from tritllm.format.dtypes import NUMBER_OF_DTYPE
from tritllm.native.structures import ALIGNMENT


def dtype_number(dtype: np.dtype) -> int:
    """The library's number of an element type. Raises TypeError for any other."""
    if dtype not in NUMBER_OF_DTYPE:
        raise TypeError(f"dtype {dtype} is not float16, bfloat16 or float32")
    return NUMBER_OF_DTYPE[dtype]


def address(array: np.ndarray) -> int:
    """Address of the first element."""
    return array.__array_interface__["data"][0]


def with_dense_rows(array: np.ndarray) -> np.ndarray:
    """The array itself where its rows are contiguous, aligned and do not overlap, else a copy."""
    rows, columns = array.shape[-2:]
    dense = columns <= 1 or array.strides[-1] == array.itemsize
    apart = rows <= 1 or array.strides[-2] >= columns * array.itemsize
    whole = array.strides[-2] % array.itemsize == 0
    if dense and apart and whole and array.flags.aligned:
        return array
    return np.ascontiguousarray(array)


def aligned_bytes(nbytes: int) -> np.ndarray:
    """Uninitialized uint8 [nbytes] at a multiple of 64 bytes; huge pages where NumPy gets them."""
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -address(raw) % ALIGNMENT
    return raw[start : start + nbytes]
