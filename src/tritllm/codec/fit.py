"""A codebook whose two ends are fitted to the matrix: v3's, section 4 of docs/codec.md."""

from __future__ import annotations

import numpy as np

from tritllm.codec.codebooks import log_spaced
from tritllm.codec.groups import Groups, group_error, ordered_sum
from tritllm.format.trits import ENTRIES, max_level

GRID = 256  # scales at which the error is tabulated when the codebook's ends are placed
BODY_SAMPLE = 2048  # groups sampled evenly for that table
TAIL_SAMPLE = 1024  # and at most so many of the most prominent groups, all of them


def fit_codebook(groups: Groups, initial: np.ndarray, depth: int) -> np.ndarray:
    """A codebook whose two ends make the total error small, starting from v2's `initial`.

    The error of a sample of groups is tabulated on a grid of GRID log-spaced scales; a codebook is
    then 27 evenly spaced rows of the table, and its error the sum of their minima. A pattern search
    moves the two ends, by 32 grid points first and by 1 last. No entry exceeds the matrix's largest
    magnitude, so what is decoded fits where the source did.
    """
    group, in_tail = sample_groups(groups.prominence)
    weight_of_body = _body_weight(groups.prominence, in_tail)
    a, u = groups.gather(group)
    top = np.minimum(initial[-1] * np.float32(1.25), groups.order[3].max())
    grid = log_spaced(initial[0] * np.float32(0.5), top, GRID)
    largest_level = np.float32(max_level(depth))
    table = np.stack([group_error(a, scale / largest_level, depth, u) for scale in grid])

    def total(low: int, high: int) -> float:
        rows = [low + (2 * j * (high - low) + 26) // 52 for j in range(ENTRIES)]
        least = table[rows].min(axis=0)
        return ordered_sum(least[in_tail]) + weight_of_body * ordered_sum(least[~in_tail])

    low, high = (int(np.searchsorted(grid, end)) for end in (initial[0], initial[-1]))
    best = total(low, high)
    stride = 32
    while stride:
        moves = (
            (low - stride, high),
            (low + stride, high),
            (low, high - stride),
            (low, high + stride),
        )
        inside = [(p, q) for p, q in moves if 0 <= p <= q < GRID]
        errors = [total(p, q) for p, q in inside]
        if errors and min(errors) < best:
            best = min(errors)
            low, high = inside[errors.index(best)]
        else:
            stride //= 2
    return log_spaced(grid[low], grid[high])


def sample_groups(prominence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group numbers, ascending, that stand for the matrix, and which of them are the tail.

    prominence: float32 [n], each group's largest magnitude (`Groups.prominence`). The tail is every
    group in the top bins (upper 16 bits of the float) that together hold at most TAIL_SAMPLE
    groups; the body is BODY_SAMPLE groups at even distances among all, without the tail's and
    without zero groups.
    """
    n = prominence.size
    bins = prominence.view(np.uint32) >> 16
    from_top = np.cumsum(np.bincount(bins, minlength=1 << 16)[::-1])
    bins_in_tail = int(np.searchsorted(from_top, TAIL_SAMPLE, side="right"))
    in_tail = bins >= (1 << 16) - bins_in_tail
    even = np.zeros(n, bool)
    count = min(n, BODY_SAMPLE)
    even[np.arange(count, dtype=np.int64) * n // count] = True
    chosen = np.flatnonzero((in_tail | even) & (prominence > 0))
    return chosen, in_tail[chosen]


def _body_weight(prominence: np.ndarray, in_tail: np.ndarray) -> float:
    sampled = int(np.count_nonzero(~in_tail))
    present = int(np.count_nonzero(prominence)) - int(np.count_nonzero(in_tail))
    return present / sampled if sampled else 0.0
