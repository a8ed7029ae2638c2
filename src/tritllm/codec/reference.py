"""The codec in NumPy: short, slow and exact. Every faster implementation gives the same bits.

Read it from top to bottom; `docs/codec.md` is the same in words. Two rules make the result a pure
function of the input bits, whatever the machine, the number of threads or the width of a vector:

* float32 operations are single, correctly rounded IEEE operations in the order written here, with
  no fused multiply-add; float64 is used only where it is named, with + - * / and sqrt alone;
* a sum runs in index order: over the 16 weights of a group (float32), over the groups of a row
  (float64), over the rows (float64).

Magnitudes are held as [16, n_groups]: one NumPy operation works on one weight of every group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tritllm.format.trits import (
    ENTRIES,
    GROUP,
    TRITS_PER_BYTE,
    levels_to_trits,
    max_level,
    pack_scale_index,
    pack_trits,
)

CODECS = ("v2", "v3")

V2_CANDIDATES = (10, 12, 14, 15)  # order statistics of a group's 16 sorted magnitudes, 0-based
NEGLIGIBLE = np.float32(2.0**-64)  # relative to the matrix's largest power of two: encoded as zero
GRID = 256  # scales at which v3 tabulates the error when it places the codebook's ends
BODY_SAMPLE = 2048  # groups sampled evenly for that table
TAIL_SAMPLE = 1024  # and at most so many of the groups with the largest magnitudes, all of them
BLOCK_GROUPS = 1 << 14  # groups handled at a time: bounds the memory, changes no result


# --- Weights of levels and scales -----------------------------------------------------------------


def decode(level: np.ndarray, index: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Levels int8 [N, K], indices [N, G], steps float32 [27] -> weights float32 [N, K]."""
    step = np.repeat(steps[index], GROUP, axis=1)[:, : level.shape[1]]
    return level.astype(np.float32) * step


# --- Codebooks ----------------------------------------------------------------------------------


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


# --- Error of a group at a scale ----------------------------------------------------------------


def quantize_magnitudes(a: np.ndarray, step: np.ndarray, depth: int) -> np.ndarray:
    """Levels k = min(rint(a * (1 / step)), L) as float32, half to even; a [16, n], step [n]."""
    k = np.rint(a * (np.float32(1) / step))
    return np.minimum(k, np.float32(max_level(depth)))


def group_error(a: np.ndarray, step: np.ndarray, depth: int) -> np.ndarray:
    """Squared error float32 [n] of each group at its step."""
    e = a - quantize_magnitudes(a, step, depth) * step
    return _sum16(e * e)


def _sum16(x: np.ndarray) -> np.ndarray:
    total = x[0].copy()
    for i in range(1, GROUP):
        total += x[i]
    return total


def _ordered_sum(values: np.ndarray) -> float:
    """Sum of float64 values in index order (`np.sum` adds pairwise)."""
    return float(np.cumsum(values, dtype=np.float64)[-1]) if values.size else 0.0


# --- The matrix as groups of magnitudes -----------------------------------------------------------


@dataclass(frozen=True)
class Groups:
    """A matrix [N, K] seen as G = ceil(K/16) groups a row, and what all depths share of it.

    exponent: magnitudes below are |w| * 2**-exponent, so the largest lies in [1, 2): sums of
    squares neither overflow nor vanish, and nothing else changes, for the factor is exact.
    order: float32 [4, N*G], the candidates of the v2 rule; order[3] is the largest magnitude.
    energy: sum of the squared magnitudes.
    """

    weight: np.ndarray
    exponent: int
    order: np.ndarray
    energy: float

    @property
    def per_row(self) -> int:
        """G, the groups of a row."""
        return -(-self.weight.shape[1] // GROUP)

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Row slices and their magnitudes float32 [16, rows*G], a bounded piece at a time."""
        for rows in row_blocks(self.weight.shape):
            yield rows, _magnitudes(self.weight[rows], self.exponent)

    def gather(self, group: np.ndarray) -> np.ndarray:
        """Magnitudes float32 [16, len(group)] of the groups with these numbers."""
        row, first = group // self.per_row, group % self.per_row * GROUP
        out = np.zeros((GROUP, len(group)), np.float32)
        for i in range(GROUP):
            inside = first + i < self.weight.shape[1]
            picked = self.weight[row[inside], first[inside] + i]
            out[i, inside] = _scaled_magnitude(picked, self.exponent)
        return out


def row_blocks(shape: tuple[int, int]) -> Iterator[slice]:
    """Slices of rows that hold about BLOCK_GROUPS groups, at least one row each."""
    rows = max(1, BLOCK_GROUPS // -(-shape[1] // GROUP))
    for start in range(0, shape[0], rows):
        yield slice(start, min(start + rows, shape[0]))


def _scaled_magnitude(weight: np.ndarray, exponent: int) -> np.ndarray:
    a = np.ldexp(np.abs(weight.astype(np.float32)), -exponent)
    return np.where(a < NEGLIGIBLE, np.float32(0), a)


def _magnitudes(weight: np.ndarray, exponent: int) -> np.ndarray:
    rows, columns = weight.shape
    padded = np.zeros((rows, -(-columns // GROUP) * GROUP), np.float32)
    padded[:, :columns] = _scaled_magnitude(weight, exponent)
    return np.ascontiguousarray(padded.reshape(-1, GROUP).T)


def gather_statistics(weight: np.ndarray) -> Groups:
    """First pass over a matrix. Raises ValueError naming the first NaN or infinity."""
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
    exponent = int(np.frexp(largest)[1]) - 1 if largest else 0

    groups = Groups(weight, exponent, np.empty((4, 0), np.float32), 0.0)
    order = np.empty((4, weight.shape[0] * groups.per_row), np.float32)
    row_energy = np.empty(weight.shape[0], np.float64)
    for rows, a in groups.blocks():
        ranked = np.sort(a, axis=0)[list(V2_CANDIDATES)]
        order[:, rows.start * groups.per_row : rows.stop * groups.per_row] = ranked
        row_energy[rows] = _row_sums(_sum16(a * a), groups.per_row)
    return Groups(weight, exponent, order, _ordered_sum(row_energy))


def _row_sums(per_group: np.ndarray, per_row: int) -> np.ndarray:
    """float64 [rows]: the groups of each row added in order."""
    return np.cumsum(per_group.reshape(-1, per_row), axis=1, dtype=np.float64)[:, -1]


# --- Codec v2: the published rule -------------------------------------------------------------


def v2_scales(groups: Groups, depth: int) -> np.ndarray:
    """float32 [N*G]: of the four order statistics, the one with the least squared error.

    A statistic that is zero is no candidate; a group of zeros has scale 0.
    """
    L = np.float32(max_level(depth))
    scales = np.zeros(groups.order.shape[1], np.float32)
    for rows, a in groups.blocks():
        span = slice(rows.start * groups.per_row, rows.stop * groups.per_row)
        best = np.full(a.shape[1], np.inf, np.float32)
        for candidate in groups.order[:, span]:
            usable = candidate > 0
            step = np.where(usable, candidate, np.float32(1)) / L
            error = np.where(usable, group_error(a, step, depth), np.float32(np.inf))
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


# --- Codec v3: the least error ----------------------------------------------------------------


def search_entries(a: np.ndarray, steps: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Index uint8 [n] of the step with the least error, and that error; ties to the smaller."""
    index = np.zeros(a.shape[1], np.uint8)
    best = np.full(a.shape[1], np.inf, np.float32)
    for j, step in enumerate(steps):
        error = group_error(a, step, depth)
        better = error < best
        index[better] = j
        best[better] = error[better]
    return index, best


def fit_codebook(groups: Groups, initial: np.ndarray, depth: int) -> np.ndarray:
    """A codebook whose two ends make the total error small, starting from v2's `initial`.

    The error of a sample of groups is tabulated on a grid of GRID log-spaced scales; a codebook is
    then 27 evenly spaced rows of the table, and its error the sum of their minima. A pattern search
    moves the two ends, by 32 grid points first and by 1 last. No entry exceeds the matrix's largest
    magnitude, so what is decoded fits where the source did.
    """
    group, in_tail = sample_groups(groups.order[3])
    weight_of_body = _body_weight(groups.order[3], in_tail)
    a = groups.gather(group)
    top = np.minimum(initial[-1] * np.float32(1.25), groups.order[3].max())
    grid = log_spaced(initial[0] * np.float32(0.5), top, GRID)
    table = np.stack(
        [group_error(a, scale / np.float32(max_level(depth)), depth) for scale in grid]
    )

    def total(low: int, high: int) -> float:
        rows = [low + (2 * j * (high - low) + 26) // 52 for j in range(ENTRIES)]
        least = table[rows].min(axis=0)
        return _ordered_sum(least[in_tail]) + weight_of_body * _ordered_sum(least[~in_tail])

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


def sample_groups(largest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group numbers, ascending, that stand for the matrix, and which of them are the tail.

    largest: float32 [n], each group's largest magnitude. The tail is every group in the top bins
    (upper 16 bits of the float) that together hold at most TAIL_SAMPLE groups; the body is
    BODY_SAMPLE groups at even distances among all, without the tail's and without zero groups.
    """
    n = largest.size
    bins = largest.view(np.uint32) >> 16
    from_top = np.cumsum(np.bincount(bins, minlength=1 << 16)[::-1])
    bins_in_tail = int(np.searchsorted(from_top, TAIL_SAMPLE, side="right"))
    in_tail = bins >= (1 << 16) - bins_in_tail
    even = np.zeros(n, bool)
    count = min(n, BODY_SAMPLE)
    even[np.arange(count, dtype=np.int64) * n // count] = True
    chosen = np.flatnonzero((in_tail | even) & (largest > 0))
    return chosen, in_tail[chosen]


def _body_weight(largest: np.ndarray, in_tail: np.ndarray) -> float:
    sampled = int(np.count_nonzero(~in_tail))
    present = int(np.count_nonzero(largest)) - int(np.count_nonzero(in_tail))
    return present / sampled if sampled else 0.0


# --- Encoding -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """The three arrays of the file (docs/format.md) and the squared sums behind an SQNR.

    weight: uint8 [d, N, ceil(K/5)]; scale: uint8 [N, ceil(3G/5)]; codebook: float32 [d, 27].
    error, energy: sum of (w - w_hat)**2 and of w**2, float64.
    """

    weight: np.ndarray
    scale: np.ndarray
    codebook: np.ndarray
    error: float
    energy: float


def encode(weight: np.ndarray, depths: Sequence[int], codec: str = "v3") -> dict[int, Encoded]:
    """Encode weight [N, K] (float16, bfloat16 or float32, N and K >= 1) at each of `depths`."""
    groups = gather_statistics(weight)
    return {depth: encode_groups(groups, depth, codec) for depth in depths}


def encode_groups(groups: Groups, depth: int, codec: str) -> Encoded:
    """Encode at one depth. v3 falls back to v2's codebook where the fitted one is not better."""
    scales = v2_scales(groups, depth)
    published = v2_codebook(scales)
    nearest = nearest_entry(scales, published)
    if codec == "v2":
        return _write(groups, depth, published, nearest)
    limit = _total_error(groups, depth, published, nearest)
    if limit == 0.0:
        return _write(groups, depth, published, None)
    fitted = _write(groups, depth, fit_codebook(groups, published, depth), None)
    if fitted.error <= _rescaled(limit, groups):
        return fitted
    return _write(groups, depth, published, None)


def stored_steps(codebook: np.ndarray, exponent: int, depth: int) -> np.ndarray:
    """float32 [27] as the file holds them: codebook * 2**exponent / L, one rounding."""
    return np.ldexp(codebook, exponent) / np.float32(max_level(depth))


def _search_steps(codebook: np.ndarray, exponent: int, depth: int) -> np.ndarray:
    """The stored steps on the scale of the magnitudes, so that errors are those of the decoder.

    A step that is zero (of a zero or subnormal matrix) decodes everything to 0; 4 does the same
    here, where magnitudes are below 2, without a division by zero.
    """
    steps = np.ldexp(stored_steps(codebook, exponent, depth), -exponent)
    return np.where(steps > 0, steps, np.float32(4))


def _total_error(groups: Groups, depth: int, codebook: np.ndarray, index: np.ndarray) -> float:
    row_error = np.zeros(groups.weight.shape[0], np.float64)
    steps = _search_steps(codebook, groups.exponent, depth)
    for rows, a in groups.blocks():
        span = slice(rows.start * groups.per_row, rows.stop * groups.per_row)
        row_error[rows] = _row_sums(group_error(a, steps[index[span]], depth), groups.per_row)
    return _ordered_sum(row_error)


def _rescaled(squares: float, groups: Groups) -> float:
    return float(np.ldexp(squares, 2 * groups.exponent))


def lower_steps(steps: np.ndarray, gain: float, depth: int, r: int) -> np.ndarray:
    """float64 [27]: the steps of the r top planes, cut so that no decoded weight overflows."""
    largest = float(np.finfo(np.float32).max) / max_level(r)
    return np.minimum(gain * (steps.astype(np.float64) * 3 ** (depth - r)), largest)


def _write(groups: Groups, depth: int, codebook: np.ndarray, index: np.ndarray | None) -> Encoded:
    """Last pass: choose indices unless given, quantize, pack, and fit one gain a lower depth."""
    n_rows, n_columns = groups.weight.shape
    steps = _search_steps(codebook, groups.exponent, depth)
    packed = np.empty((depth, n_rows, -(-n_columns // TRITS_PER_BYTE)), np.uint8)
    scale = np.empty((n_rows, -(-3 * groups.per_row // TRITS_PER_BYTE)), np.uint8)
    row_error = np.zeros(n_rows, np.float64)
    row_dot = np.zeros((depth, n_rows), np.float64)  # sum of w * base of the r top planes
    row_norm = np.zeros((depth, n_rows), np.float64)  # sum of base * base
    for rows, a in groups.blocks():
        if index is None:
            j, error = search_entries(a, steps, depth)
        else:
            j = index[rows.start * groups.per_row : rows.stop * groups.per_row]
            error = group_error(a, steps[j], depth)
        k = quantize_magnitudes(a, steps[j], depth)
        row_error[rows] = _row_sums(error, groups.per_row)
        for r in range(depth - 1, 0, -1):
            top = np.rint(k / np.float32(3 ** (depth - r)))  # the level that r planes hold
            base = steps[j].astype(np.float64) * 3 ** (depth - r)
            row_dot[r, rows] = _row_sums(_sum16(a * top) * base, groups.per_row)
            row_norm[r, rows] = _row_sums(_sum16(top * top) * base * base, groups.per_row)
        level = k.T.reshape(rows.stop - rows.start, -1)[:, :n_columns].astype(np.int8)
        level = np.where(np.signbit(groups.weight[rows]), -level, level)
        packed[:, rows] = pack_trits(levels_to_trits(level, depth))
        scale[rows] = pack_scale_index(j.reshape(-1, groups.per_row))

    table = np.empty((depth, ENTRIES), np.float32)
    table[depth - 1] = stored_steps(codebook, groups.exponent, depth)
    for r in range(1, depth):
        norm = _ordered_sum(row_norm[r])
        gain = _ordered_sum(row_dot[r]) / norm if norm else 1.0
        table[r - 1] = lower_steps(table[depth - 1], gain, depth, r)
    total = _rescaled(_ordered_sum(row_error), groups)
    return Encoded(packed, scale, table, total, _rescaled(groups.energy, groups))
