"""A matrix as groups of magnitudes, and a group's squared error: section 1 of docs/codec.md.

Two rules make every result of the codec a pure function of the input bits, whatever the machine,
the number of threads or the width of a vector:

* float32 operations are single, correctly rounded IEEE operations in the order written here, with
  no fused multiply-add; float64 is used only where it is named, with + - * / and sqrt alone;
* a sum runs in index order: over the 16 weights of a group (float32), over the groups of a row
  (float64), over the rows (float64).

Magnitudes are held as [16, n_groups]: one NumPy operation works on one weight of every group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from tritllm.format.layout import groups_of
from tritllm.format.trits import GROUP, max_level

V2_CANDIDATES = (10, 12, 14, 15)  # order statistics of a group's 16 sorted magnitudes, 0-based
NEGLIGIBLE = np.float32(2.0**-64)  # relative to the matrix's largest power of two: encoded as zero
LEAST_COLUMN_WEIGHT = np.float32(2.0**-32)  # relative to the largest: see `relative_weights`
BLOCK_GROUPS = 1 << 14  # groups handled at a time: bounds the memory, changes no result


# --- Error of a group at a step -----------------------------------------------------------------


def quantize_magnitudes(a: np.ndarray, step: np.ndarray, depth: int) -> np.ndarray:
    """Levels k = min(rint(a * (1 / step)), L) as float32, half to even; a [16, n], step [n]."""
    k = np.rint(a * (np.float32(1) / step))
    return np.minimum(k, np.float32(max_level(depth)))


def group_error(
    a: np.ndarray, step: np.ndarray, depth: int, u: np.ndarray | None = None
) -> np.ndarray:
    """Squared error float32 [n] of each group at its step; u [16, n]: a factor for each weight."""
    e = a - quantize_magnitudes(a, step, depth) * step
    return sum16(e * e, u)


def sum16(x: np.ndarray, u: np.ndarray | None = None) -> np.ndarray:
    """Sum float32 [n] of x [16, n], or of x * u, in index order."""
    if u is not None:
        x = x * u
    total = x[0].copy()
    for i in range(1, GROUP):
        total += x[i]
    return total


def row_sums(per_group: np.ndarray, per_row: int) -> np.ndarray:
    """float64 [rows]: the groups of each row added in order."""
    return np.cumsum(per_group.reshape(-1, per_row), axis=1, dtype=np.float64)[:, -1]


def ordered_sum(values: np.ndarray) -> float:
    """Sum of float64 values in index order (`np.sum` adds pairwise)."""
    return float(np.cumsum(values, dtype=np.float64)[-1]) if values.size else 0.0


# --- The matrix ---------------------------------------------------------------------------------


class Block(NamedTuple):
    """Some rows of a matrix.

    rows: which; groups: the same as a slice of group numbers; a: magnitudes float32 [16, n];
    u: column weights float32 [16, n], None where all columns count alike.
    """

    rows: slice
    groups: slice
    a: np.ndarray
    u: np.ndarray | None


@dataclass(frozen=True)
class Groups:
    """A matrix [N, K] seen as G = ceil(K/16) groups a row, and what all depths share of it.

    exponent: magnitudes below are |w| * 2**-exponent, so the largest lies in [1, 2): sums of
    squares neither overflow nor vanish, and nothing else changes, for the factor is exact.
    order: float32 [4, N*G], the candidates of the v2 rule; order[3] is the largest magnitude.
    energy: sum of the squared magnitudes, whatever the column weights.
    column_weight: float32 [16, G], at most 1, of each place in a row's groups; None without.
    prominence: float32 [N*G], the largest magnitude of a group, each times its column weight's
    square root: the order in which v3 samples.
    """

    weight: np.ndarray
    exponent: int
    order: np.ndarray
    energy: float
    column_weight: np.ndarray | None
    prominence: np.ndarray

    @property
    def per_row(self) -> int:
        """G, the groups of a row."""
        return groups_of(self.weight.shape[1])

    def blocks(self) -> Iterator[Block]:
        """The whole matrix, a bounded number of rows at a time."""
        for rows in row_blocks(self.weight.shape):
            span = slice(rows.start * self.per_row, rows.stop * self.per_row)
            u = self.column_weight
            if u is not None:
                u = np.tile(u, rows.stop - rows.start)
            yield Block(rows, span, _magnitudes(self.weight[rows], self.exponent), u)

    def gather(self, group: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Magnitudes and column weights [16, len(group)] of the groups with these numbers."""
        row, place = group // self.per_row, group % self.per_row
        a = np.zeros((GROUP, len(group)), np.float32)
        for i in range(GROUP):
            column = place * GROUP + i
            inside = column < self.weight.shape[1]
            picked = self.weight[row[inside], column[inside]]
            a[i, inside] = _scaled_magnitude(picked, self.exponent)
        return a, None if self.column_weight is None else self.column_weight[:, place]

    def without_column_weights(self) -> Groups:
        """The same matrix, all columns counting alike."""
        return replace(self, column_weight=None, prominence=self.order[3])


def row_blocks(shape: tuple[int, int]) -> Iterator[slice]:
    """Slices of rows that hold about BLOCK_GROUPS groups, at least one row each."""
    rows = max(1, BLOCK_GROUPS // groups_of(shape[1]))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


def _scaled_magnitude(weight: np.ndarray, exponent: int) -> np.ndarray:
    a = np.ldexp(np.abs(weight.astype(np.float32)), -exponent)
    return np.where(a < NEGLIGIBLE, np.float32(0), a)


def _magnitudes(weight: np.ndarray, exponent: int) -> np.ndarray:
    rows, columns = weight.shape
    padded = np.zeros((rows, groups_of(columns) * GROUP), np.float32)
    padded[:, :columns] = _scaled_magnitude(weight, exponent)
    return np.ascontiguousarray(padded.reshape(-1, GROUP).T)


def relative_weights(column_weights: np.ndarray) -> np.ndarray:
    """Column weights [K] -> float32 [16, G]: each over the largest, 1 where all of them are 0.

    None is below LEAST_COLUMN_WEIGHT, so that a group of columns that count for nothing still
    takes the index that is good for them. Places beyond K hold 1 (there is nothing to weigh).
    """
    wide = column_weights.astype(np.float64)
    largest = wide.max()
    relative = (wide / largest if largest else np.ones_like(wide)).astype(np.float32)
    padded = np.ones(groups_of(relative.size) * GROUP, np.float32)
    padded[: relative.size] = np.maximum(relative, LEAST_COLUMN_WEIGHT)
    return np.ascontiguousarray(padded.reshape(-1, GROUP).T)


def gather_statistics(weight: np.ndarray, column_weights: np.ndarray | None = None) -> Groups:
    """First pass over a matrix. Raises ValueError naming the first NaN or infinity."""
    exponent = exponent_of(weight)
    column_weight = None if column_weights is None else relative_weights(column_weights)
    empty = np.empty(0, np.float32)
    groups = Groups(weight, exponent, empty, 0.0, column_weight, empty)
    n = weight.shape[0] * groups.per_row
    order, prominence = np.empty((4, n), np.float32), np.empty(n, np.float32)
    row_energy = np.empty(weight.shape[0], np.float64)
    for rows, span, a, u in groups.blocks():
        order[:, span] = np.sort(a, axis=0)[list(V2_CANDIDATES)]
        row_energy[rows] = row_sums(sum16(a * a), groups.per_row)
        if u is not None:
            prominence[span] = (a * np.sqrt(u)).max(axis=0)
    if column_weight is None:
        prominence = order[3]
    energy = ordered_sum(row_energy)
    return replace(groups, order=order, energy=energy, prominence=prominence)


def exponent_of(weight: np.ndarray) -> int:
    """floor(log2) of the largest magnitude, 0 for a matrix of zeros.

    Raises ValueError for a value that is not finite.
    """
    largest = np.float32(0)
    for rows in row_blocks(weight.shape):
        block = np.abs(weight[rows].astype(np.float32))
        top = block.max()
        if not np.isfinite(top):
            row, column = np.argwhere(~np.isfinite(block))[0]
            value = weight[rows][row, column]
            raise ValueError(
                f"weight[{rows.start + row}, {column}] is {value}, not a finite number"
            )
        largest = max(largest, top)
    return int(np.frexp(largest)[1]) - 1 if largest else 0
