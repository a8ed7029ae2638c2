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


def checked_array(name: str, array: object) -> np.ndarray:
    """The array itself. Raises ValueError for what is none, or has a mask."""
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name}: a {type(array).__name__}, expected a NumPy array")
    _refuse_masked(name, array)
    return array


def checked_depth(depth: int) -> int:
    """The depth as an int. Raises ValueError for what is not an integer of 1..4."""
    return checked_integer("depth", depth, DEPTHS[-1])


def checked_threads(threads: int) -> int:
    """The number of threads as an int. Raises ValueError for what is not an integer above 0."""
    return checked_integer("threads", threads)


def checked_integer(name: str, value: object, largest: int | None = None) -> int:
    """The value as an int. Raises ValueError unless it is an integer of 1..largest.

    True, 1.0 and "1" are none; NumPy's integers are.
    """
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        number = int(value)
        if number >= 1 and (largest is None or number <= largest):
            return number
    shown = value if value is None or np.isscalar(value) else f"a {type(value).__name__}"
    expected = "1 or more" if largest is None else f"1..{largest}"
    raise ValueError(f"{name} is {shown!s:.40}, expected {expected}")


def _refuse_masked(name: str, array: object) -> None:
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError(f"{name}: its mask would be ignored; fill the masked array first")
