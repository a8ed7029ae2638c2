"""The three floats that weights come in, under every name they have, and the cast between them."""

from __future__ import annotations

from typing import NamedTuple

import ml_dtypes
import numpy as np


class FloatType(NamedTuple):
    """One float: `name` as NumPy, torch and transformers say, and what others call it."""

    name: str
    safetensors: str
    numpy: np.dtype
    number: int  # in the native library's calls


FLOATS = (
    FloatType("float16", "F16", np.dtype(np.float16), 0),
    FloatType("bfloat16", "BF16", np.dtype(ml_dtypes.bfloat16), 1),
    FloatType("float32", "F32", np.dtype(np.float32), 2),
)

FLOAT_DTYPES = tuple(kind.numpy for kind in FLOATS)
NUMBER_OF_DTYPE = {kind.numpy: kind.number for kind in FLOATS}
NUMPY_OF_SAFETENSORS = {kind.safetensors: kind.numpy for kind in FLOATS}
SAFETENSORS_OF_NAME = {kind.name: kind.safetensors for kind in FLOATS}


def cast_checked(values: np.ndarray, dtype: str) -> np.ndarray:
    """Cast to the safetensors dtype, half to even.

    Raises OverflowError with the first finite value that the dtype cannot hold.
    """
    target = NUMPY_OF_SAFETENSORS[dtype]
    if values.dtype == target:
        return values
    with np.errstate(over="ignore"):
        cast = values.astype(target)
    if not np.isfinite(cast.astype(np.float32)).all():
        lost = np.isfinite(values.astype(np.float32)) & ~np.isfinite(cast.astype(np.float32))
        if lost.any():
            raise OverflowError(f"{float(values[lost].flat[0]):g} does not fit {target}")
    return cast
