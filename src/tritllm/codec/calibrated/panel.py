"""The encoder's passes over some rows of a matrix: sections 3 and 5 of docs/calibration.md.

Products over all columns are matrix products of NumPy; what happens inside a block of 128 columns
is `search.py`'s, or its native twin's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tritllm.codec.calibrated import native_search, search
from tritllm.codec.calibrated.curvature import BLOCK, Curvature, upper_triangle
from tritllm.codec.calibrated.matrix import values
from tritllm.codec.calibrated.search import Columns, Limits
from tritllm.format.trits import GROUP
from tritllm.native.blas import on_one_thread

MIXED_GROUPS = 4  # in a mixed block


@dataclass(frozen=True, eq=False)
class MixedBlock:
    """Groups that need not be neighbours, with the factors of their own block of the Hessian.

    groups: which; columns: theirs; triangle: R with R R^T = that block, inverse: R^-1, feedback:
    R over its diagonal, group_feedback: each group's own part of that, importance: R's squared
    diagonal, float32.
    """

    groups: np.ndarray
    columns: np.ndarray
    triangle: np.ndarray
    inverse: np.ndarray
    feedback: np.ndarray
    group_feedback: np.ndarray
    importance: np.ndarray


def mixed_blocks(curvature: Curvature, turn: int) -> list[MixedBlock]:
    """All groups, four at a time, in the order of `mixed_order`."""
    blocks = []
    order = mixed_order(len(curvature.importance), turn)
    with on_one_thread():
        for first in range(0, len(order), MIXED_GROUPS):
            groups = order[first : first + MIXED_GROUPS]
            columns = (groups[:, None] * GROUP + np.arange(GROUP)).ravel()
            triangle = upper_triangle(curvature.hessian[np.ix_(columns, columns)])
            root = np.diagonal(triangle)
            feedback = (triangle / root).astype(np.float32)
            blocks.append(
                MixedBlock(
                    groups=groups,
                    columns=columns,
                    triangle=triangle.astype(np.float32),
                    inverse=np.linalg.inv(triangle).astype(np.float32),
                    feedback=feedback,
                    group_feedback=_diagonal_blocks(feedback),
                    importance=np.square(root).reshape(-1, GROUP).astype(np.float32),
                )
            )
    return blocks


def mixed_order(groups: int, turn: int) -> np.ndarray:
    """A permutation of the groups, another one each turn, that looks like chance."""
    number = np.arange(1, groups + 1, dtype=np.uint64) * np.uint64(2 * turn + 1)
    return np.argsort(number * np.uint64(2654435761) % np.uint64(2**32), kind="stable")


@dataclass(frozen=True, eq=False)
class Panel:
    """Rows of a matrix, m of them; passes change level and index in place.

    target: float32 [Kp, m]; level: float32 [Kp, m] and index: int32 [G, m] as in `Fit`; steps:
    [27]; limits: what they may be. isa: the native instruction set, "reference" for NumPy.
    """

    curvature: Curvature
    target: np.ndarray
    level: np.ndarray
    index: np.ndarray
    steps: np.ndarray
    limits: Limits
    isa: str | None

    def start(self) -> None:
        """The pass with error feedback: groups in order, each makes up for those before it."""
        curvature, target = self.curvature, self.target
        value, error = np.empty_like(target), np.empty_like(target)
        for span, groups in _blocks(len(target)):
            aim = target[span]
            if span.start:
                aim = aim + curvature.feedback[: span.start, span].T @ error[: span.start]
            own = np.ascontiguousarray(curvature.feedback[span, span])
            block = Columns(
                target=target[span],
                given=aim,
                coupling=own,
                feedback=_diagonal_blocks(own),
                solve=None,
                importance=curvature.importance[groups],
                steps=self.steps,
                limits=self.limits.part(span, groups),
                level=self.level[span],
                index=self.index[groups],
                value=value[span],
            )
            self._run("feed_back", block)
            np.subtract(target[span], value[span], out=error[span])

    def descend(self) -> None:
        """Each group anew against all others as they are; never a larger loss."""
        curvature, target = self.curvature, self.target
        value = values(self.level, self.index, self.steps)
        error = target - value
        for span, groups in _blocks(len(target)):
            block = Columns(
                target=target[span],
                given=curvature.hessian[span] @ error,
                coupling=np.ascontiguousarray(curvature.hessian[span, span]),
                feedback=curvature.group_feedback[groups],
                solve=curvature.group_solve[groups],
                importance=curvature.group_importance[groups],
                steps=self.steps,
                limits=self.limits.part(span, groups),
                level=self.level[span],
                index=self.index[groups],
                value=value[span],
            )
            self._run("descend", block)
            np.subtract(target[span], value[span], out=error[span])

    def regroup(self, blocks: Sequence[MixedBlock]) -> None:
        """Mixed blocks anew, with error feedback among their groups.

        A block's new choices are taken, row by row, where they cost less against all other columns
        as they are: what no group can gain by itself, several may gain together.
        """
        hessian, level, index = self.curvature.hessian, self.level, self.index
        value = values(level, index, self.steps)
        error = self.target - value
        for mixed in blocks:
            columns, groups = mixed.columns, mixed.groups
            left = mixed.inverse @ (hessian[columns] @ error)
            aim = value[columns] + mixed.inverse.T @ left
            block = Columns(
                target=aim,
                given=aim,
                coupling=mixed.feedback,
                feedback=mixed.group_feedback,
                solve=None,
                importance=mixed.importance,
                steps=self.steps,
                limits=self.limits.part(columns, groups),
                level=np.empty_like(aim),
                index=index[groups],
                value=np.empty_like(aim),
            )
            self._run("feed_back", block)
            missed = mixed.triangle.T @ (aim - block.value)
            better = np.square(missed).sum(axis=0) < np.square(left).sum(axis=0)
            level[columns] = np.where(better, block.level, level[columns])
            index[groups] = np.where(better, block.index, index[groups])
            value[columns] = np.where(better, block.value, value[columns])
            error[columns] = self.target[columns] - value[columns]

    def _run(self, inner: Literal["feed_back", "descend"], block: Columns) -> None:
        if self.isa == "reference":
            {"feed_back": search.feed_back, "descend": search.descend}[inner](block)
        else:
            twin = {"feed_back": native_search.feed_back, "descend": native_search.descend}
            twin[inner](block, isa=self.isa)


def _blocks(columns: int) -> Iterator[tuple[slice, slice]]:
    """The columns of each block, and its groups."""
    for begin in range(0, columns, BLOCK):
        end = min(begin + BLOCK, columns)
        yield slice(begin, end), slice(begin // GROUP, end // GROUP)


def _diagonal_blocks(square: np.ndarray) -> np.ndarray:
    """[B, B] -> [B/16, 16, 16]: the groups' own parts."""
    starts = range(0, len(square), GROUP)
    return np.stack([square[s : s + GROUP, s : s + GROUP] for s in starts])
