"""Keys and values as int8, a float32 scale for each 32 of a head: the definition in NumPy."""

from __future__ import annotations

import numpy as np

from tritllm.native.structures import CACHE_GROUP

_SMALLEST = np.float32(2.0**-100)  # a group below it counts as zero: 127 / largest stays finite


def quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """X [..., D] -> int8 [..., D] and float32 scales [..., D / 32].

    scale = max|x| / 127, q = rint(x * (127 / max|x|)) in a group of 32; a group that is not finite
    gets NaN as its scale.
    """
    groups = x.astype(np.float32).reshape(*x.shape[:-1], -1, CACHE_GROUP)
    largest = np.abs(groups).max(axis=-1)
    finite = np.isfinite(largest)
    usable = finite & (largest >= _SMALLEST)
    inverse = np.float32(127) / np.where(usable, largest, np.float32(1))
    q = np.rint(np.where(usable[..., None], groups, 0) * inverse[..., None]).astype(np.int8)
    scale = np.where(usable, largest, np.float32(0)) / np.float32(127)
    return q.reshape(x.shape), np.where(finite, scale, np.float32(np.nan)).astype(np.float32)


def dequantized(q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Int8 [..., D] and scales [..., D / 32] -> float32 [..., D]."""
    groups = q.astype(np.float32).reshape(*scale.shape, CACHE_GROUP)
    return (groups * scale[..., None]).reshape(q.shape)
