"""Codebooks of 27 log-spaced scales: section 2 of docs/codec.md."""

from __future__ import annotations

import numpy as np

from tritllm.format.trits import ENTRIES, max_level


def log_spaced(low: float, high: float, n: int = ENTRIES) -> np.ndarray:
    """The n float32 from low to high (float32 values, 0 < low <= high), each r times the last.

    r is the largest float64 whose (n-1)-fold repeated product does not exceed high / low; found by
    bisection, so that no platform's pow or exp enters the result.
    """
    target = float(high) / float(low)
    root, above = 1.0, target if target > 1.0 else 1.0
    while True:
        middle = (root + above) / 2
        if middle in (root, above):
            break
        product = 1.0
        for _ in range(n - 1):
            product *= middle
        root, above = (middle, above) if product <= target else (root, middle)
    entries = np.empty(n, np.float32)
    value = float(low)
    for j in range(n):
        entries[j] = value
        value *= root
    entries[-1] = high
    return entries


def nearest_entry(scale: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Index of the entry nearest in log distance: the number of geometric midpoints below."""
    wide = codebook.astype(np.float64)
    midpoints = np.sqrt(wide[:-1] * wide[1:]).astype(np.float32)
    return np.searchsorted(midpoints, scale, side="left").astype(np.uint8)


def stored_steps(codebook: np.ndarray, exponent: int, depth: int) -> np.ndarray:
    """float32 [27] as the file holds them: codebook * 2**exponent / L, one rounding."""
    return np.ldexp(codebook, exponent) / np.float32(max_level(depth))


def search_steps(codebook: np.ndarray, exponent: int, depth: int) -> np.ndarray:
    """The stored steps on the scale of the magnitudes, so that errors are those of the decoder.

    A step that is zero (of a zero or subnormal matrix) decodes everything to 0; 4 does the same
    here, where magnitudes are below 2, without a division by zero.
    """
    steps = np.ldexp(stored_steps(codebook, exponent, depth), -exponent)
    return np.where(steps > 0, steps, np.float32(4))


def lower_steps(steps: np.ndarray, gain: float, depth: int, r: int) -> np.ndarray:
    """float64 [27]: the steps of the r top planes, cut so that no decoded weight overflows."""
    largest = float(np.finfo(np.float32).max) / max_level(r)
    return np.minimum(gain * (steps.astype(np.float64) * 3 ** (depth - r)), largest)
