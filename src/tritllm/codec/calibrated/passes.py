"""The encoder's passes over a matrix: sections 3 to 5 of docs/calibration.md.

Products over all columns are matrix products of NumPy; what happens inside a block of 128 columns
is `search.py`'s, or its native twin's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tritllm.codec.calibrated import native_search, search
from tritllm.codec.calibrated.curvature import BLOCK, upper_triangle
from tritllm.codec.calibrated.matrix import Fit, Matrix, quadratic
from tritllm.codec.calibrated.search import Columns, Limits
from tritllm.codec.calibrated.steps import (
    ascending,
    normal_equations,
    sampled_rows,
    solve_steps,
    step_products,
)
from tritllm.codec.engine import is_native, warn_of_reference
from tritllm.format.trits import ENTRIES, GROUP

ROUNDS = 6  # of mixed blocks, least-squares steps and descent
MIXED_GROUPS = 4  # in a mixed block


def blocks(columns: int) -> Iterator[tuple[slice, slice]]:
    """The columns of each block, and its groups."""
    for begin in range(0, columns, BLOCK):
        end = min(begin + BLOCK, columns)
        yield slice(begin, end), slice(begin // GROUP, end // GROUP)


def loss(matrix: Matrix, fit: Fit) -> float:
    """tr((T - Q) H (T - Q)^T)."""
    return quadratic(matrix.target - fit.value(), matrix.curvature)


@dataclass(frozen=True, eq=False)
class Passes:
    """The passes of one depth over one matrix.

    limits: what levels and entries may be. isa: the native instruction set, "reference" for NumPy,
    None for the fastest there is. threads, isa: change no bit.
    """

    matrix: Matrix
    depth: int
    limits: Limits
    threads: int = 1
    isa: str | None = None

    def start(self, steps: np.ndarray) -> Fit:
        """The pass with error feedback: groups in order, each makes up for those before it."""
        curvature, target = self.matrix.curvature, self.matrix.target
        level = np.empty_like(target)
        index = np.empty((len(target) // GROUP, target.shape[1]), np.int32)
        if self.limits.index is not None:
            index[:] = self.limits.index
        value, error = np.empty_like(target), np.empty_like(target)
        for span, groups in blocks(len(target)):
            aim = target[span]
            if span.start:
                aim = aim + curvature.feedback[: span.start, span].T @ error[: span.start]
            own = np.ascontiguousarray(curvature.feedback[span, span])
            block = Columns(
                target=target[span],
                given=aim,
                coupling=own,
                feedback=diagonal_blocks(own),
                solve=None,
                importance=curvature.importance[groups],
                steps=steps,
                limits=self.limits.part(span, groups),
                level=level[span],
                index=index[groups],
                value=value[span],
            )
            self._run("feed_back", block)
            np.subtract(target[span], value[span], out=error[span])
        return Fit(level, index, steps)

    def descend(self, fit: Fit) -> Fit:
        """Each group anew against all others as they are; never a larger loss."""
        curvature, target = self.matrix.curvature, self.matrix.target
        level, index, value = fit.level.copy(), fit.index.copy(), fit.value()
        error = target - value
        for span, groups in blocks(len(level)):
            block = Columns(
                target=target[span],
                given=curvature.hessian[span] @ error,
                coupling=np.ascontiguousarray(curvature.hessian[span, span]),
                feedback=curvature.group_feedback[groups],
                solve=curvature.group_solve[groups],
                importance=curvature.group_importance[groups],
                steps=fit.steps,
                limits=self.limits.part(span, groups),
                level=level[span],
                index=index[groups],
                value=value[span],
            )
            self._run("descend", block)
            np.subtract(target[span], value[span], out=error[span])
        return Fit(level, index, fit.steps)

    def regroup(self, fit: Fit, turn: int) -> Fit:
        """Blocks of groups that need not be neighbours anew, with error feedback among them.

        A block's new choices are taken, row by row, where they cost less against all other columns
        as they are: what no group can gain by itself, several may gain together. Each turn puts
        other groups together.
        """
        curvature, target = self.matrix.curvature, self.matrix.target
        level, index, value = fit.level.copy(), fit.index.copy(), fit.value()
        error = target - value
        order = mixed_order(len(index), turn)
        for first in range(0, len(order), MIXED_GROUPS):
            groups = order[first : first + MIXED_GROUPS]
            columns = (groups[:, None] * GROUP + np.arange(GROUP)).ravel()
            triangle = upper_triangle(curvature.hessian[np.ix_(columns, columns)])
            inverse = np.linalg.inv(triangle).astype(np.float32)
            root = np.diagonal(triangle)
            feedback = (triangle / root).astype(np.float32)
            left = inverse @ (curvature.hessian[columns] @ error)
            aim = value[columns] + inverse.T @ left
            block = Columns(
                target=aim,
                given=aim,
                coupling=feedback,
                feedback=diagonal_blocks(feedback),
                solve=None,
                importance=np.square(root).reshape(-1, GROUP).astype(np.float32),
                steps=fit.steps,
                limits=self.limits.part(columns, groups),
                level=np.empty_like(aim),
                index=index[groups],
                value=np.empty_like(aim),
            )
            self._run("feed_back", block)
            missed = triangle.T.astype(np.float32) @ (aim - block.value)
            better = np.square(missed).sum(axis=0) < np.square(left).sum(axis=0)
            level[columns] = np.where(better, block.level, level[columns])
            index[groups] = np.where(better, block.index, index[groups])
            value[columns] = np.where(better, block.value, value[columns])
            error[columns] = target[columns] - value[columns]
        return Fit(level, index, fit.steps)

    def best_steps(self, fit: Fit) -> Fit:
        """The same levels with the steps of least squares, ascending again.

        Indices follow where their steps are sorted; where they are fixed, the steps are made to
        ascend.
        """
        matrix, hessian = self.matrix, self.matrix.curvature.hessian
        rows = sampled_rows(len(matrix.weight))
        level = np.ascontiguousarray(fit.level[:, rows])
        index = np.ascontiguousarray(fit.index[:, rows])
        if self._native:
            products = native_search.step_products(level, index, hessian, self.threads, self.isa)
        else:
            products = step_products(level, index, hessian)
        pull = hessian @ matrix.target[:, rows]
        found = solve_steps(*normal_equations(products, level, index, pull), fit.steps)
        found = np.minimum(found, matrix.largest_step(self.depth))
        if self.limits.index is not None:
            uses = np.bincount(fit.index.ravel(), minlength=ENTRIES) + 1.0
            return Fit(fit.level, fit.index, ascending(found, uses).astype(np.float32))
        order = np.argsort(found, kind="stable")
        place = np.empty(ENTRIES, np.int32)
        place[order] = np.arange(ENTRIES, dtype=np.int32)
        return Fit(fit.level, place[fit.index], found[order])

    def refined(self, fit: Fit, rounds: int = ROUNDS) -> Fit:
        """Least-squares steps, mixed blocks and descent in turn; the steps last."""
        for turn in range(rounds):
            fit = self.descend(self.regroup(self.best_steps(fit), turn))
        return self.best_steps(fit)

    def _run(self, inner: Literal["feed_back", "descend"], block: Columns) -> None:
        if self._native:
            twin = {"feed_back": native_search.feed_back, "descend": native_search.descend}
            twin[inner](block, self.threads, self.isa)
        else:
            {"feed_back": search.feed_back, "descend": search.descend}[inner](block)

    @property
    def _native(self) -> bool:
        if self.isa == "reference":
            return False
        if not is_native():
            warn_of_reference()
            return False
        return True


def diagonal_blocks(square: np.ndarray) -> np.ndarray:
    """[B, B] -> [B/16, 16, 16]: the groups' own parts."""
    starts = range(0, len(square), GROUP)
    return np.stack([square[s : s + GROUP, s : s + GROUP] for s in starts])


def mixed_order(groups: int, turn: int) -> np.ndarray:
    """A permutation of the groups, another one each turn, that looks like chance."""
    number = np.arange(1, groups + 1, dtype=np.uint64) * np.uint64(2 * turn + 1)
    return np.argsort(number * np.uint64(2654435761) % np.uint64(2**32), kind="stable")
