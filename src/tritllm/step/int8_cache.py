"""Keys and values as int8, a float32 scale for each 32 of a head: the definition in NumPy."""

from __future__ import annotations

import numpy as np

from tritllm.native.structures import CACHE_GROUP
from tritllm.products.reference import quantize_groups


def quantized(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """X [..., D] -> int8 [..., D] and float32 scales [..., D / 32].

    Groups of 32 are rounded as activations are: see products/reference.py.
    """
    groups = x.astype(np.float32).reshape(*x.shape[:-1], -1, CACHE_GROUP)
    rounded = quantize_groups(groups)
    return rounded.q.reshape(x.shape), rounded.scale


def dequantized(q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Int8 [..., D] and scales [..., D / 32] -> float32 [..., D]."""
    groups = q.astype(np.float32).reshape(*scale.shape, CACHE_GROUP)
    return (groups * scale[..., None]).reshape(q.shape)
