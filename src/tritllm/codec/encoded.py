"""An encoded matrix, and the last pass that writes it: section 5 of docs/codec.md."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tritllm.codec.codebooks import lower_steps, search_steps, stored_steps
from tritllm.codec.groups import (
    Groups,
    group_error,
    ordered_sum,
    quantize_magnitudes,
    row_sums,
    sum16,
)
from tritllm.format.layout import packed_shapes
from tritllm.format.trits import ENTRIES, levels_to_trits, pack_scale_index, pack_trits


@dataclass(frozen=True)
class Encoded:
    """The three arrays of the file (docs/format.md) and the squared sums behind an SQNR.

    weight: uint8 [d, N, ceil(K/5)]; scale: uint8 [N, ceil(3G/5)]; codebook: float32 [d, 27].
    error, energy: sum of (w - w_hat)**2 and of w**2, float64, every column counting alike.
    """

    weight: np.ndarray
    scale: np.ndarray
    codebook: np.ndarray
    error: float
    energy: float


def write(groups: Groups, depth: int, codebook: np.ndarray, index: np.ndarray) -> Encoded:
    """Quantize with the entry index[g] of each group g, pack, and fit one gain a lower depth.

    codebook: float32 [27], scales on the footing of the groups' magnitudes; index: uint8 [N*G].
    """
    n_rows, n_columns = groups.weight.shape
    steps = search_steps(codebook, groups.exponent, depth)
    packed_shape, scale_shape, _ = packed_shapes(n_rows, n_columns, depth)
    packed, scale = np.empty(packed_shape, np.uint8), np.empty(scale_shape, np.uint8)
    row_error = np.zeros(n_rows, np.float64)
    row_dot = np.zeros((depth, n_rows), np.float64)  # sum of w * base of the r top planes
    row_norm = np.zeros((depth, n_rows), np.float64)  # sum of base * base
    for rows, span, a, u in groups.blocks():
        j = index[span]
        k = quantize_magnitudes(a, steps[j], depth)
        row_error[rows] = row_sums(group_error(a, steps[j], depth), groups.per_row)
        for r in range(depth - 1, 0, -1):
            top = np.rint(k / np.float32(3 ** (depth - r)))  # the level that r planes hold
            base = steps[j].astype(np.float64) * 3 ** (depth - r)
            row_dot[r, rows] = row_sums(sum16(a * top, u) * base, groups.per_row)
            row_norm[r, rows] = row_sums(sum16(top * top, u) * base * base, groups.per_row)
        level = k.T.reshape(rows.stop - rows.start, -1)[:, :n_columns].astype(np.int8)
        level = np.where(np.signbit(groups.weight[rows]), -level, level)
        packed[:, rows] = pack_trits(levels_to_trits(level, depth))
        scale[rows] = pack_scale_index(j.reshape(-1, groups.per_row))

    table = np.empty((depth, ENTRIES), np.float32)
    table[depth - 1] = stored_steps(codebook, groups.exponent, depth)
    for r in range(1, depth):
        norm = ordered_sum(row_norm[r])
        gain = ordered_sum(row_dot[r]) / norm if norm else 1.0
        table[r - 1] = lower_steps(table[depth - 1], gain, depth, r)
    squares = ordered_sum(row_error), groups.energy
    return Encoded(packed, scale, table, *(rescaled(s, groups.exponent) for s in squares))


def rescaled(squares: float, exponent: int) -> float:
    """A sum of squared magnitudes, of the weights themselves."""
    return float(np.ldexp(squares, 2 * exponent))
