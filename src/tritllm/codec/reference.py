"""The codec in NumPy: short, slow and exact. Every faster implementation gives the same bits.

This file is the two rules, v2 and v3; what they are made of is read in the order of docs/codec.md,
which says the same in words: `groups.py` (magnitudes and errors), `codebooks.py`, `fit.py` (v3's
codebook), `encoded.py` (levels, packing, lower depths), and then this file from top to bottom.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tritllm.codec.codebooks import log_spaced, nearest_entry, search_steps
from tritllm.codec.encoded import Encoded, write
from tritllm.codec.fit import fit_codebook
from tritllm.codec.groups import Groups, gather_statistics, group_error, ordered_sum, row_sums
from tritllm.format.trits import ENTRIES, GROUP, max_level


def dequantize(level: np.ndarray, index: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Levels int8 [N, K], indices [N, G], steps float32 [27] -> weights float32 [N, K]."""
    step = np.repeat(steps[index], GROUP, axis=1)[:, : level.shape[1]]
    return level.astype(np.float32) * step


# --- v2: the published rule ---------------------------------------------------------------------


def encode_v2(weight: np.ndarray, depths: Sequence[int]) -> dict[int, Encoded]:
    """Encode weight [N, K] (float16, bfloat16 or float32, N and K >= 1) at each of `depths`."""
    groups = gather_statistics(weight)
    return {depth: write(groups, depth, *v2_choice(groups, depth)) for depth in depths}


def v2_choice(groups: Groups, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The codebook float32 [27] and the index uint8 [N*G] of each group."""
    scales = v2_scales(groups, depth)
    codebook = v2_codebook(scales)
    return codebook, nearest_entry(scales, codebook)


def v2_scales(groups: Groups, depth: int) -> np.ndarray:
    """float32 [N*G]: of the four order statistics, the one with the least squared error.

    A statistic that is zero is no candidate; a group of zeros has scale 0.
    """
    L = np.float32(max_level(depth))
    scales = np.zeros(groups.order.shape[1], np.float32)
    for _, span, a, u in groups.blocks():
        best = np.full(a.shape[1], np.inf, np.float32)
        for candidate in groups.order[:, span]:
            usable = candidate > 0
            step = np.where(usable, candidate, np.float32(1)) / L
            error = np.where(usable, group_error(a, step, depth, u), np.float32(np.inf))
            better = error < best
            scales[span][better] = candidate[better]
            best[better] = error[better]
    return scales


def v2_codebook(scales: np.ndarray) -> np.ndarray:
    """From the 0.1th percentile of the positive group scales to their maximum; zeros if none."""
    positive = np.sort(scales[scales > 0])
    if not positive.size:
        return np.zeros(ENTRIES, np.float32)
    return log_spaced(positive[(positive.size - 1) // 1000], positive[-1])


# --- v3: the least error ------------------------------------------------------------------------


def encode_v3(
    weight: np.ndarray, depths: Sequence[int], column_weights: np.ndarray | None = None
) -> dict[int, Encoded]:
    """As `encode_v2`; the error that is made small counts column c `column_weights[c]` times.

    column_weights: [K], finite and not negative; None counts every column once.
    """
    groups = gather_statistics(weight, column_weights)
    return {depth: write(groups, depth, *v3_choice(groups, depth)) for depth in depths}


def v3_choice(groups: Groups, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """As `v2_choice`. With column weights, never worse than the codebook chosen without them."""
    codebook, index, error = _fitted_choice(groups, depth)
    if groups.column_weight is not None:
        plain, _, _ = _fitted_choice(groups.without_column_weights(), depth)
        plain_index, plain_error = search(groups, depth, plain)
        if plain_error < error:
            return plain, plain_index
    return codebook, index


def _fitted_choice(groups: Groups, depth: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Codebook, indices and total error; v2's codebook where the fitted one is not better."""
    published, nearest = v2_choice(groups, depth)
    limit = total_error(groups, depth, published, nearest)
    if limit != 0.0:
        fitted = fit_codebook(groups, published, depth)
        index, error = search(groups, depth, fitted)
        if error <= limit:
            return fitted, index, error
    return published, *search(groups, depth, published)


def search(groups: Groups, depth: int, codebook: np.ndarray) -> tuple[np.ndarray, float]:
    """Index uint8 [N*G] of the entry with the least error for each group, and their total."""
    index = np.empty(groups.order.shape[1], np.uint8)
    row_error = np.zeros(groups.weight.shape[0], np.float64)
    steps = search_steps(codebook, groups.exponent, depth)
    for rows, span, a, u in groups.blocks():
        index[span], error = search_entries(a, steps, depth, u)
        row_error[rows] = row_sums(error, groups.per_row)
    return index, ordered_sum(row_error)


def search_entries(
    a: np.ndarray, steps: np.ndarray, depth: int, u: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Index uint8 [n] of the step with the least error, and that error; ties to the smaller."""
    index = np.zeros(a.shape[1], np.uint8)
    best = np.full(a.shape[1], np.inf, np.float32)
    for j, step in enumerate(steps):
        error = group_error(a, step, depth, u)
        better = error < best
        index[better] = j
        best[better] = error[better]
    return index, best


def total_error(groups: Groups, depth: int, codebook: np.ndarray, index: np.ndarray) -> float:
    """Total squared error with these indices, on the scale of the magnitudes."""
    row_error = np.zeros(groups.weight.shape[0], np.float64)
    steps = search_steps(codebook, groups.exponent, depth)
    for rows, span, a, u in groups.blocks():
        error = group_error(a, steps[index[span]], depth, u)
        row_error[rows] = row_sums(error, groups.per_row)
    return ordered_sum(row_error)
