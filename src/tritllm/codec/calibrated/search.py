"""The inner work of the calibrated encoder in NumPy: sections 3 and 5 of docs/calibration.md.

Arrays are held as [columns, rows]: one NumPy operation works on one column of every row. Values
are float32; each operation is rounded once, in the order written, without fused multiply-add, so
that the native twin gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tritllm.format.trits import ENTRIES, GROUP

LEAST_STEP = np.float32(2.0**-100)  # below it every level is 0: its inverse could be infinite


@dataclass(frozen=True, eq=False)
class Choice:
    """What a group of columns became, for n rows.

    level: float32 [16, n], integers; index: int32 [n]; value: float32 [16, n], level times step;
    loss: float32 [n].
    """

    level: np.ndarray
    index: np.ndarray
    value: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True, eq=False)
class Limits:
    """Which levels and entries a search may choose from.

    reach: a level lies at most so far from its centre. centre: float32 [columns, n], 0 where it
    is None. index: int32 [groups, n], the entry of each group where it is fixed, else None.
    """

    reach: int
    centre: np.ndarray | None = None
    index: np.ndarray | None = None

    def part(self, columns: slice | np.ndarray, groups: slice | np.ndarray) -> Limits:
        """Those of some columns, whole groups."""
        return Limits(
            self.reach,
            None if self.centre is None else self.centre[columns],
            None if self.index is None else self.index[groups],
        )

    def rows(self, rows: slice) -> Limits:
        """Those of some rows, as arrays of their own."""
        centre = None if self.centre is None else np.ascontiguousarray(self.centre[:, rows])
        index = None if self.index is None else np.ascontiguousarray(self.index[:, rows])
        return Limits(self.reach, centre, index)


def inverse_steps(steps: np.ndarray) -> np.ndarray:
    """float32: 1 / step, 0 for a step too small to divide by."""
    return np.where(steps >= LEAST_STEP, 1 / np.maximum(steps, LEAST_STEP), 0).astype(np.float32)


def search(
    aim: np.ndarray,
    feedback: np.ndarray,
    importance: np.ndarray,
    steps: np.ndarray,
    limits: Limits,
) -> Choice:
    """The best of 27 entries for a group: at each, its columns in turn, each corrected by the last.

    Column j is rounded from v_j = aim_j - sum over i < j of q_i feedback[i, j]; the loss is the
    sum of importance_j (v_j - q_j)**2. The first entry of least loss wins.

    aim: float32 [16, n]; feedback: [16, 16], the part above the diagonal is read; importance: [16].
    limits.centre: [16, n]; limits.index: [1, n].
    """
    n = aim.shape[1]
    best = Choice(
        np.zeros((GROUP, n), np.float32),
        np.zeros(n, np.int32),
        np.zeros((GROUP, n), np.float32),
        np.full(n, np.inf, np.float32),
    )
    low, high = np.float32(-limits.reach), np.float32(limits.reach)
    inverse = inverse_steps(steps)
    if limits.index is None:
        entries = [(np.int32(j), steps[j], inverse[j]) for j in range(ENTRIES)]
    else:
        entries = [(limits.index[0], steps[limits.index[0]], inverse[limits.index[0]])]
    level, value = np.empty_like(aim), np.empty_like(aim)
    for entry, step, reciprocal in entries:
        loss = np.zeros(n, np.float32)
        for j in range(GROUP):
            v = aim[j]
            for i in range(j):
                v = v - value[i] * feedback[i, j]
            if limits.centre is None:
                level[j] = np.rint(np.minimum(np.maximum(v * reciprocal, low), high))
            else:
                away = v * reciprocal - limits.centre[j]
                level[j] = limits.centre[j] + np.rint(np.minimum(np.maximum(away, low), high))
            value[j] = level[j] * step
            error = v - value[j]
            loss = loss + (error * error) * importance[j]
        better = loss < best.loss
        best.level[:, better] = level[:, better]
        best.value[:, better] = value[:, better]
        best.index[better] = np.broadcast_to(entry, n)[better]
        best.loss[better] = loss[better]
    return best


@dataclass(frozen=True, eq=False)
class Columns:
    """A block of columns, whole groups, and what a pass over it reads and writes.

    Arrays are contiguous, float32 where nothing else is said; B columns, n rows.

    given: [B, n]; for `feed_back` its aim, the target and what it has to make up for from columns
    before the block; for `descend` the gradient, the block's rows of H (target - value) over all
    columns. coupling: [B, B], the block's feedback, or its Hessian. feedback, solve: [B/16, 16, 16]
    and importance: [B/16, 16], of each group by itself: those of the matrix's triangle for
    `feed_back`, those of the group's own for `descend`, which alone reads `solve`. steps: [27].
    level, value: [B, n] and index: int32 [B/16, n] are written; `descend` reads them first.
    """

    target: np.ndarray
    given: np.ndarray
    coupling: np.ndarray
    feedback: np.ndarray
    solve: np.ndarray | None
    importance: np.ndarray
    steps: np.ndarray
    limits: Limits
    level: np.ndarray
    index: np.ndarray
    value: np.ndarray


def feed_back(block: Columns) -> None:
    """Encode the block's groups in turn, each making up for the errors of those before it."""
    target, value = block.target, block.value
    for start in range(0, len(target), GROUP):
        group, g = slice(start, start + GROUP), start // GROUP
        aim = block.given[group].copy()
        for i in range(start):
            error = target[i] - value[i]
            for j in range(GROUP):
                aim[j] += error * block.coupling[i, start + j]
        for i in range(GROUP):
            for j in range(i + 1, GROUP):
                aim[j] += target[start + i] * block.feedback[g, i, j]
        choice = search(
            aim,
            block.feedback[g],
            block.importance[g],
            block.steps,
            block.limits.part(group, slice(g, g + 1)),
        )
        block.level[group], block.index[g], value[group] = choice.level, choice.index, choice.value


def descend(block: Columns) -> None:
    """Encode each group anew against all others as they are, where that costs less.

    The minimum over a group lies at value + gradient Hgg^-1. In `search`'s terms that is
    aim = value F + gradient S, F = feedback and S = solve; what is left now, gradient S, has the
    loss sum of importance_j (gradient S)_j**2.
    """
    assert block.solve is not None
    level, index, value, gradient = block.level, block.index, block.value, block.given.copy()
    for start in range(0, len(gradient), GROUP):
        group, g = slice(start, start + GROUP), start // GROUP
        feedback, importance, solve = block.feedback[g], block.importance[g], block.solve[g]
        left = np.zeros_like(gradient[group])
        aim = value[group].copy()
        present = np.zeros_like(left[0])
        for j in range(GROUP):
            for i in range(j, GROUP):
                left[j] += gradient[start + i] * solve[i, j]
            for i in range(j):
                aim[j] += value[start + i] * feedback[i, j]
            aim[j] += left[j]
            present += (left[j] * left[j]) * importance[j]
        limits = block.limits.part(group, slice(g, g + 1))
        choice = search(aim, feedback, importance, block.steps, limits)
        better = choice.loss < present
        change = np.where(better, value[group] - choice.value, np.float32(0))
        level[group] = np.where(better, choice.level, level[group])
        index[g] = np.where(better, choice.index, index[g])
        value[group] = np.where(better, choice.value, value[group])
        for j in range(start + GROUP, len(gradient)):
            for i in range(GROUP):
                gradient[j] += change[i] * block.coupling[start + i, j]
