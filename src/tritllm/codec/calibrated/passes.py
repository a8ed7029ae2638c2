"""The encoder's passes over a matrix: sections 3 to 5 of docs/calibration.md.

Products over all columns are matrix products of NumPy; what happens inside a block of 128 columns
is `search.py`'s, or its native twin's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tritllm.codec.calibrated import search
from tritllm.codec.calibrated.curvature import BLOCK
from tritllm.codec.calibrated.matrix import Fit, Matrix, quadratic
from tritllm.codec.calibrated.search import Limits
from tritllm.codec.calibrated.steps import (
    ascending,
    normal_equations,
    sampled_rows,
    solve_steps,
)
from tritllm.format.trits import ENTRIES, GROUP

ROUNDS = 4  # of least-squares steps and descent


def blocks(columns: int) -> Iterator[tuple[slice, slice]]:
    """The columns of each block, and its groups."""
    for begin in range(0, columns, BLOCK):
        end = min(begin + BLOCK, columns)
        yield slice(begin, end), slice(begin // GROUP, end // GROUP)


def loss(matrix: Matrix, fit: Fit) -> float:
    """tr((T - Q) H (T - Q)^T)."""
    return quadratic(matrix.target - fit.value(), matrix.curvature)


def start(matrix: Matrix, steps: np.ndarray, limits: Limits) -> Fit:
    """The pass with error feedback: groups in order, each makes up for those before it."""
    curvature, target = matrix.curvature, matrix.target
    level = np.empty_like(target)
    index = np.empty((len(target) // GROUP, target.shape[1]), np.int32)
    value, error = np.empty_like(target), np.empty_like(target)
    for span, groups in blocks(len(target)):
        aim = target[span]
        if span.start:
            aim = aim + curvature.feedback[: span.start, span].T @ error[: span.start]
        search.feed_back(
            target[span],
            aim,
            curvature.feedback[span, span],
            curvature.importance[span],
            steps,
            limits.part(span, groups),
            level[span],
            index[groups],
            value[span],
        )
        np.subtract(target[span], value[span], out=error[span])
    return Fit(level, index, steps)


def descend(matrix: Matrix, fit: Fit, limits: Limits) -> Fit:
    """Each group anew against all others as they are; never a larger loss."""
    curvature = matrix.curvature
    level, index, value = fit.level.copy(), fit.index.copy(), fit.value()
    error = matrix.target - value
    for span, groups in blocks(len(level)):
        search.descend(
            curvature.hessian[span] @ error,
            curvature.hessian[span, span],
            curvature.group_feedback[groups],
            curvature.group_importance[groups],
            curvature.group_solve[groups],
            fit.steps,
            limits.part(span, groups),
            level[span],
            index[groups],
            value[span],
        )
        np.subtract(matrix.target[span], value[span], out=error[span])
    return Fit(level, index, fit.steps)


def best_steps(matrix: Matrix, fit: Fit, depth: int, limits: Limits) -> Fit:
    """The same levels with the steps of least squares, ascending again.

    Indices follow where their steps are sorted; where they are fixed, the steps are made to ascend.
    """
    rows = sampled_rows(len(matrix.weight))
    hessian = matrix.curvature.hessian
    level, index = fit.level[:, rows], fit.index[:, rows]
    found = solve_steps(
        *normal_equations(level, index, hessian, hessian @ matrix.target[:, rows]), fit.steps
    )
    found = np.minimum(found, matrix.largest_step(depth))
    if limits.index is not None:
        rising = ascending(found, np.bincount(fit.index.ravel(), minlength=ENTRIES) + 1.0)
        return Fit(fit.level, fit.index, rising.astype(np.float32))
    order = np.argsort(found, kind="stable")
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    return Fit(fit.level, place[fit.index], found[order])


def refine(matrix: Matrix, fit: Fit, depth: int, limits: Limits, rounds: int = ROUNDS) -> Fit:
    """Least-squares steps and descent in turn; the steps last."""
    for _ in range(rounds):
        fit = descend(matrix, best_steps(matrix, fit, depth, limits), limits)
    return best_steps(matrix, fit, depth, limits)
