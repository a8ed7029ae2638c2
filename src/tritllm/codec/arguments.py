"""What callers of the codec hand in, checked: each wrong argument is one clear ValueError."""

from __future__ import annotations

import numpy as np

from tritllm.format.dtypes import FLOAT_DTYPES
from tritllm.format.trits import DEPTHS


def checked_weight(weight: np.ndarray) -> np.ndarray:
    """The weight as a plain array [N, K]. Raises ValueError for another shape or dtype."""
    _refuse_masked("weight", weight)
    weight = np.asarray(weight)
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"weight has shape {list(weight.shape)}, expected a matrix [N, K]")
    if weight.dtype not in FLOAT_DTYPES:
        raise ValueError(f"weight is {weight.dtype}, expected float16, bfloat16 or float32")
    return weight


def checked_column_weights(column_weights: np.ndarray, in_features: int) -> np.ndarray:
    """The weights as float64 [K]. Raises ValueError unless they are finite and not negative."""
    _refuse_masked("column_weights", column_weights)
    values = np.asarray(column_weights)
    if values.shape != (in_features,):
        raise ValueError(
            f"column_weights have shape {list(values.shape)}, expected [{in_features}]"
        )
    if values.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"column_weights are {values.dtype}, expected float32 or float64")
    bad = ~np.isfinite(values) | (values < 0)
    if bad.any():
        first = int(np.argmax(bad))
        raise ValueError(
            f"column_weights[{first}] is {values[first]}, expected a finite number, 0 or above"
        )
    return values.astype(np.float64)


def _refuse_masked(name: str, array: np.ndarray) -> None:
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError(f"{name} is a masked array; fill it, for its mask would be ignored")


def checked_depth(depth: int) -> int:
    """The depth as an int. Raises ValueError for what is not an integer of 1..4."""
    if isinstance(depth, (int, np.integer)) and not isinstance(depth, bool) and depth in DEPTHS:
        return int(depth)
    raise ValueError(f"depth is {depth!r}, expected 1..4")


def checked_threads(threads: int) -> int:
    """The number of threads as an int. Raises ValueError for what is not an integer above 0."""
    if isinstance(threads, (int, np.integer)) and not isinstance(threads, bool) and threads > 0:
        return int(threads)
    raise ValueError(f"threads is {threads!r}, expected 1 or more")
