"""Names of float dtypes in safetensors, transformers and NumPy, and the cast between them."""

from __future__ import annotations

import ml_dtypes
import numpy as np

NUMPY_OF_SAFETENSORS = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
}
SAFETENSORS_OF_NAME = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}


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
