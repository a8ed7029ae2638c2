"""The encoder's passes over a matrix, its panels of rows side by side: docs/calibration.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tritllm.codec.calibrated import native_search
from tritllm.codec.calibrated.matrix import Fit, Matrix
from tritllm.codec.calibrated.panel import Panel, mixed_blocks
from tritllm.codec.calibrated.row_panels import each_panel
from tritllm.codec.calibrated.search import Limits
from tritllm.codec.calibrated.steps import (
    ascending,
    normal_equations,
    solve_steps,
    step_products,
)
from tritllm.codec.engine import is_native, warn_of_reference
from tritllm.format.trits import ENTRIES, GROUP

ROUNDS = 6  # of mixed blocks, least-squares steps and descent


def loss(matrix: Matrix, fit: Fit) -> float:
    """tr((T - Q) H (T - Q)^T)."""
    return matrix.quadratic(matrix.target - fit.value())


@dataclass(frozen=True, eq=False)
class Passes:
    """The passes of one depth over one matrix.

    limits: what levels and entries may be. isa: the native instruction set, "reference" for NumPy,
    None for the fastest there is; it changes no bit.
    """

    matrix: Matrix
    depth: int
    limits: Limits
    isa: str | None = None

    def start(self, steps: np.ndarray) -> Fit:
        """The pass with error feedback from these steps."""
        target = self.matrix.target
        index = np.empty((len(target) // GROUP, target.shape[1]), np.int32)
        if self.limits.index is not None:
            index[:] = self.limits.index
        return self._each(Fit(np.empty_like(target), index, steps), Panel.start)

    def descend(self, fit: Fit) -> Fit:
        """Each group anew against all others as they are; never a larger loss."""
        return self._each(fit, Panel.descend)

    def regroup(self, fit: Fit, turn: int) -> Fit:
        """Mixed blocks anew, other ones each turn; never a larger loss."""
        blocks = mixed_blocks(self.matrix.curvature, turn)
        return self._each(fit, lambda panel: panel.regroup(blocks))

    def best_steps(self, fit: Fit) -> Fit:
        """The same levels with the steps of least squares, ascending again.

        Indices follow where their steps are sorted; where they are fixed, the steps are made to
        ascend.
        """
        matrix, hessian = self.matrix, self.matrix.curvature.hessian
        rows = matrix.sampled
        level = np.ascontiguousarray(fit.level[:, rows])
        index = np.ascontiguousarray(fit.index[:, rows])
        if self._native:
            products = native_search.step_products(
                level, index, hessian, self.matrix.threads, self.isa
            )
        else:
            products = step_products(level, index, hessian)
        equations = normal_equations(products, level, index, matrix.sampled_pull)
        found = solve_steps(*equations, fit.steps)
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

    def _each(self, fit: Fit, work: Callable[[Panel], None]) -> Fit:
        """What `work` makes of every panel."""
        level, index = fit.level.copy(), fit.index.copy()
        isa = self.isa if self._native else "reference"

        def of(rows: slice) -> None:
            panel = Panel(
                self.matrix.curvature,
                np.ascontiguousarray(self.matrix.target[:, rows]),
                np.ascontiguousarray(level[:, rows]),
                np.ascontiguousarray(index[:, rows]),
                fit.steps,
                self.limits.rows(rows),
                isa,
            )
            work(panel)
            level[:, rows], index[:, rows] = panel.level, panel.index

        each_panel(level.shape[1], self.matrix.threads, of)
        return Fit(level, index, fit.steps)

    @property
    def _native(self) -> bool:
        if self.isa == "reference":
            return False
        if not is_native():
            warn_of_reference()
            return False
        return True
