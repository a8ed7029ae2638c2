"""A matrix in the order and the units of encoding, and back to the arrays of the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tritllm.codec.calibrated.curvature import Curvature
from tritllm.codec.calibrated.row_panels import each_panel
from tritllm.codec.calibrated.steps import lower_planes, sampled_rows
from tritllm.codec.encoded import Encoded
from tritllm.codec.groups import exponent_of, ordered_sum, row_blocks
from tritllm.format.layout import groups_of
from tritllm.format.trits import (
    ENTRIES,
    GROUP,
    levels_to_trits,
    max_level,
    pack_scale_index,
    pack_trits,
    trits_to_levels,
    unpack_scale_index,
    unpack_trits,
)

LARGEST_TARGET = 2.0**40  # of the largest weight; sums of squares stay far from overflow
LANES = 16  # rows are padded with zeros to a multiple of this


@dataclass(frozen=True, eq=False)
class Fit:
    """Levels, entries and steps that stand for a matrix.

    level: float32 [Kp, n], integers; index: int32 [G, n]; steps: float32 [27], ascending, in units
    of the matrix; n is N padded to a multiple of 16.
    """

    level: np.ndarray
    index: np.ndarray
    steps: np.ndarray

    def value(self) -> np.ndarray:
        """float32 [Kp, n]: level times step."""
        return values(self.level, self.index, self.steps)


def values(level: np.ndarray, index: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """float32 [columns, n]: level times the step of its group's entry."""
    return level * np.repeat(steps[index], GROUP, axis=0)


@dataclass(frozen=True, eq=False)
class Matrix:
    """What is to be encoded: the target T = W + cross H^-1, columns in the curvature's order.

    weight: [N, K], the source's. exponent: values below are in units of 2**exponent, in which the
    largest |w| lies in [1, 2). target, source: float32 [Kp, n], T and W. threads: for the rows.
    """

    weight: np.ndarray
    curvature: Curvature
    exponent: int
    target: np.ndarray
    source: np.ndarray
    threads: int = 1

    @classmethod
    def of(
        cls, weight: np.ndarray, curvature: Curvature, cross: np.ndarray | None, threads: int = 1
    ) -> Matrix:
        """Raises ValueError for shapes that do not agree and for a value that is not finite."""
        columns = weight.shape[1]
        if columns != curvature.columns:
            raise ValueError(
                f"weight has {columns} columns, the curvature is of {curvature.columns}"
            )
        exponent = exponent_of(weight)
        source = _ordered(np.ldexp(weight.astype(np.float32), -exponent), curvature.order)
        target = source
        if cross is not None:
            _check_cross(cross, weight.shape)
            scaled = np.ldexp(cross.astype(np.float64), -exponent - curvature.exponent)
            right = _ordered(scaled, curvature.order)
            right[curvature.dead] = 0
            target = np.empty_like(source)

            def solve(rows: slice) -> None:
                with np.errstate(over="ignore", invalid="ignore"):
                    moved = curvature.solve(np.ascontiguousarray(right[:, rows]))
                    target[:, rows] = source[:, rows] + moved

            each_panel(source.shape[1], threads, solve)
            if not np.abs(target).max() < LARGEST_TARGET:
                raise ValueError("cross is too large for these weights and this curvature")
        return cls(weight, curvature, exponent, target, source, threads)

    def energy(self) -> float:
        """tr(W H W^T)."""
        return self.quadratic(self.source)

    def quadratic(self, columns: np.ndarray) -> float:
        """tr(X H X^T) of X^T = columns, float32 [Kp, n]."""
        sums = np.empty(columns.shape[1])

        def of(rows: slice) -> None:
            part = columns[:, rows]
            product = self.curvature.hessian @ part
            product *= part
            sums[rows] = product.sum(axis=0, dtype=np.float64)

        each_panel(len(sums), self.threads, of)
        return ordered_sum(sums)

    @cached_property
    def sampled(self) -> np.ndarray:
        """The rows from which the equations of the steps are summed."""
        return sampled_rows(len(self.weight), len(self.curvature.importance))

    @cached_property
    def sampled_pull(self) -> np.ndarray:
        """float32 [Kp, len(sampled)]: H times the targets of those rows."""
        target = self.target[:, self.sampled]
        pull = np.empty_like(target)

        def of(rows: slice) -> None:
            pull[:, rows] = self.curvature.hessian @ target[:, rows]

        each_panel(target.shape[1], self.threads, of)
        return pull

    def largest_step(self, depth: int) -> np.float32:
        """The largest step whose products with all levels are finite float32 in the file."""
        largest = np.float32(np.finfo(np.float32).max) / np.float32(max_level(depth))
        with np.errstate(over="ignore"):
            return np.float32(np.ldexp(largest, -self.exponent))

    def fit_of(self, encoded: Encoded) -> Fit:
        """The choices of arrays of the file."""
        columns = self.weight.shape[1]
        level = trits_to_levels(unpack_trits(encoded.weight, columns)).astype(np.float32)
        index = unpack_scale_index(encoded.scale, groups_of(columns)).astype(np.int32)
        groups = self.curvature.order[::GROUP] // GROUP
        steps = np.ldexp(encoded.codebook[-1], -self.exponent)
        return Fit(_ordered(level, self.curvature.order), _padded(index[:, groups].T), steps)

    def write(self, fits: Mapping[int, Fit], depth: int) -> Encoded:
        """The arrays of the file: the levels of fits[depth], and the steps of every depth given."""
        fit = fits[depth]
        rows, columns = self.weight.shape
        level = np.empty((rows, len(self.curvature.order)), np.int8)
        level[:, self.curvature.order] = fit.level.T[:rows]
        index = np.empty((rows, len(fit.index)), np.uint8)
        index[:, self.curvature.order[::GROUP] // GROUP] = fit.index.T[:rows]
        codebook = np.empty((depth, ENTRIES), np.float32)
        diagonal = np.diagonal(self.curvature.hessian)
        lower = lower_planes(fit.level, fit.index, self.target, diagonal, fit.steps, depth)
        for r in range(1, depth):
            largest = float(np.finfo(np.float32).max) / max_level(r)
            codebook[r - 1] = np.minimum(np.ldexp(lower[r - 1], self.exponent), largest)
        for r, at_depth in fits.items():
            codebook[r - 1] = np.ldexp(at_depth.steps, self.exponent)
        packed = pack_trits(levels_to_trits(level[:, :columns], depth))
        error, energy = _squares(self.weight, level, codebook[-1][index])
        return Encoded(packed, pack_scale_index(index), codebook, error, energy)


def _check_cross(cross: np.ndarray, shape: tuple[int, int]) -> None:
    if cross.shape != shape:
        raise ValueError(f"cross has shape {list(cross.shape)}, expected {list(shape)}")
    if cross.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"cross is {cross.dtype}, expected float64 or float32")
    if not np.isfinite(cross).all():
        row, column = np.argwhere(~np.isfinite(cross))[0]
        raise ValueError(f"cross[{row}, {column}] is {cross[row, column]}, not a finite number")


def _padded(columns: np.ndarray) -> np.ndarray:
    """[m, N] -> [m, n], n a multiple of 16, zeros behind."""
    missing = -columns.shape[1] % LANES
    return np.ascontiguousarray(np.pad(columns, ((0, 0), (0, missing))))


def _ordered(rows: np.ndarray, order: np.ndarray) -> np.ndarray:
    """[N, K] -> [Kp, n]: columns to places, zeros beyond the matrix."""
    n, columns = rows.shape
    out = np.zeros((len(order), n + -n % LANES), rows.dtype)
    inside = order < columns
    out[inside, :n] = rows.T[order[inside]]
    return out


def _squares(weight: np.ndarray, level: np.ndarray, step: np.ndarray) -> tuple[float, float]:
    """Sums of (w - w_hat)**2 and of w**2, float64."""
    error = energy = 0.0
    for rows in row_blocks(weight.shape):
        wide = weight[rows].astype(np.float64)
        value = level[rows] * np.repeat(step[rows], GROUP, axis=1)
        error += float(np.square(wide - value[:, : wide.shape[1]]).sum())
        energy += float(np.square(wide).sum())
    return error, energy
