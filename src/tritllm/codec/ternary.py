"""Matrices that are ternary already: one plane, every trit the source's. docs/born_ternary.md.

A matrix is ternary where each group of 16 weights is made of -s, 0 and +s, with an s of its own at
most. Up to 27 different s are the codebook, and every weight is kept to the bit. More are fitted by
27 entries with the least squared error, a weighted k-means in one dimension; trits stay the
source's there, too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tritllm.codec.encoded import Encoded
from tritllm.codec.groups import ordered_sum, row_blocks
from tritllm.format.layout import groups_of, packed_shapes
from tritllm.format.trits import ENTRIES, GROUP, pack_scale_index, pack_trits

_LEAST_SHARED = 4  # weights that have a magnitude in common, on average: not so by chance
_RUNS = 1024  # of magnitudes in ascending order, between which the first partition is optimal
_FIRST_ROWS = 16  # which tell of nearly every other matrix that it is none
_ROUNDS = 64  # of improving that partition, at most


class Scales(NamedTuple):
    """The magnitudes of a ternary matrix.

    group: float32 [N, G], that of each group, 0 where all its weights are.
    distinct: float32 [n], those above 0, ascending. weights: int64 [n], how many weights have each.
    """

    group: np.ndarray
    distinct: np.ndarray
    weights: np.ndarray


def encode_ternary(weight: np.ndarray) -> Encoded | None:
    """A ternary matrix [N, K] (float16, bfloat16 or float32) at depth 1; None for any other.

    Of a matrix with one s all bits are those of v3 and v2. A value that is not finite is not
    looked for: None leaves it to the encoder that is asked next.
    """
    scales = scales_of(weight)
    return None if scales is None else _write(weight, scales)


def scales_of(weight: np.ndarray) -> Scales | None:
    """The magnitudes of weight [N, K] (float16, bfloat16 or float32); None if it is not ternary.

    A matrix in which every few weights have a magnitude of their own (one of a single column, say)
    is not: nobody made it of trits. Nor is one with a value that is not finite.
    """
    n_rows, n_columns = weight.shape
    unsigned = np.dtype(f"u{weight.itemsize}")
    if n_rows > _FIRST_ROWS and not _one_magnitude(*_magnitudes(weight[:_FIRST_ROWS])):
        return None
    largest = np.empty((n_rows, groups_of(n_columns)), unsigned)
    distinct, counts = np.empty(0, unsigned), np.empty(0, np.int64)
    for rows in row_blocks(weight.shape):
        grouped, top = _magnitudes(weight[rows])
        largest[rows] = top
        if not _one_magnitude(grouped, top):
            return None
        here, place = np.unique(top, return_inverse=True)
        number = np.bincount(place.reshape(-1), (grouped != 0).sum(axis=-1).reshape(-1))
        distinct, place = np.unique(np.concatenate([distinct, here]), return_inverse=True)
        counts = np.bincount(place.reshape(-1), np.concatenate([counts, number])).astype(np.int64)
    values = distinct.view(weight.dtype).astype(np.float32)
    positive = values > 0
    if not np.isfinite(values).all() or _LEAST_SHARED * positive.sum() > counts.sum():
        return None
    group = largest.view(weight.dtype).astype(np.float32)
    return Scales(group, values[positive], counts[positive])


def _magnitudes(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bits of the magnitudes in groups [n, G, 16], padded by zeros, and the largest [n, G]."""
    unsigned = np.dtype(f"u{rows.itemsize}")
    magnitude = np.zeros((len(rows), groups_of(rows.shape[1]) * GROUP), unsigned)
    bits = np.ascontiguousarray(rows).view(unsigned)
    magnitude[:, : rows.shape[1]] = bits & unsigned.type(np.iinfo(unsigned).max >> 1)
    grouped = magnitude.reshape(len(rows), -1, GROUP)
    return grouped, grouped.max(axis=-1)


def _one_magnitude(grouped: np.ndarray, top: np.ndarray) -> bool:
    """Whether no group has another magnitude than its largest and zero."""
    return bool(((grouped == 0) | (grouped == top[..., None])).all())


def _write(weight: np.ndarray, scales: Scales) -> Encoded:
    n_rows, n_columns = weight.shape
    codebook = codebook_of(scales)
    midpoints = (codebook[:-1].astype(np.float64) + codebook[1:]) / 2
    # An s that stands several times has the first of its entries: no midpoint is below it.
    index = np.searchsorted(midpoints, scales.group, side="left").astype(np.uint8)
    index[scales.group == 0] = 0
    packed_shape, scale_shape, _ = packed_shapes(n_rows, n_columns, 1)
    packed, scale = np.empty(packed_shape, np.uint8), np.empty(scale_shape, np.uint8)
    for rows in row_blocks(weight.shape):
        part = weight[rows]
        packed[0, rows] = pack_trits((part > 0).astype(np.int8) - (part < 0).astype(np.int8))
        scale[rows] = pack_scale_index(index[rows])
    x = scales.distinct.astype(np.float64)
    missed = x - codebook[np.searchsorted(midpoints, x, side="left")]
    error = ordered_sum(scales.weights * missed**2)
    return Encoded(packed, scale, codebook[None], error, ordered_sum(scales.weights * x**2))


def codebook_of(scales: Scales) -> np.ndarray:
    """float32 [27], ascending: the magnitudes, the largest repeated; or what fits more best."""
    n = scales.distinct.size
    if not n:
        return np.zeros(ENTRIES, np.float32)
    if n > ENTRIES:
        return fitted_entries(scales.distinct, scales.weights, ENTRIES)
    return scales.distinct[np.minimum(np.arange(ENTRIES), n - 1)]


def fitted_entries(values: np.ndarray, weights: np.ndarray, n: int) -> np.ndarray:
    """The n float32 with a small sum of weights * (value - nearest of them)**2, ascending.

    values: float32 [m], ascending, m > n; weights: [m], above 0. The values are cut into at most
    1024 runs; of all partitions of these into n parts the best is found by dynamic programming
    (Wang and Song, 2011), which is the optimum where every value is a run of its own. Then Lloyd's
    rule moves the bounds between parts within the runs (Lloyd, 1982).
    """
    x = values.astype(np.float64)
    runs = np.unique(np.linspace(0, x.size, min(x.size, _RUNS) + 1).astype(np.int64))
    bounds = runs[_best_partition(_sums(x, weights)[:, runs], n)]
    total, first, _ = _sums(x, weights)
    for _ in range(_ROUNDS):
        centre = np.diff(first[bounds]) / np.diff(total[bounds])
        middle = (centre[:-1] + centre[1:]) / 2
        moved = np.array([0, *np.searchsorted(x, middle), x.size])
        if (np.diff(moved) == 0).any() or (moved == bounds).all():
            break
        bounds = moved
    return (np.diff(first[bounds]) / np.diff(total[bounds])).astype(np.float32)


def _sums(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64 [3, m + 1]: of the first i values the sums of weight, weight * x, weight * x**2."""
    terms = np.stack([weights * np.ones_like(x), weights * x, weights * x**2])
    return np.concatenate([np.zeros((3, 1)), np.cumsum(terms, axis=1)], axis=1)


def _best_partition(sums: np.ndarray, n: int) -> np.ndarray:
    """int64 [n + 1]: where the best n parts of m runs begin, and where the last one ends.

    sums: float64 [3, m + 1], `_sums` at the ends of the runs.
    """
    total, first, second = sums
    m = total.size - 1
    count = total[None, :] - total[:, None]  # [i, j]: of the runs i..j-1
    with np.errstate(divide="ignore", invalid="ignore"):
        cost = (second[None, :] - second[:, None]) - (first[None, :] - first[:, None]) ** 2 / count
    cost = np.where(np.tri(m + 1, dtype=bool), np.inf, np.maximum(cost, 0))
    best = cost[0]
    begins = []
    for _ in range(n - 1):
        all_costs = best[:, None] + cost
        begins.append(all_costs.argmin(axis=0))
        best = np.take_along_axis(all_costs, begins[-1][None], axis=0)[0]
    bounds = [m]
    for begin in reversed(begins):
        bounds.append(int(begin[bounds[-1]]))
    return np.array([0, *reversed(bounds)])
