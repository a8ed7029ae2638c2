"""What the encoder needs of the inputs of a layer: their damped second moments, factored.

Sections 1 and 2 of docs/calibration.md. One `Curvature` serves every matrix that reads the same
inputs (query, key and value of a block; gate and up), at every depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tritllm.errors import TritError
from tritllm.format.layout import groups_of
from tritllm.format.trits import GROUP

DAMPING = 0.05  # of the mean diagonal over live columns
DAMPINGS = 5  # the first and four more, each ten times the last
LEAST_TOKENS = 4  # a Hessian of fewer than K / 4 tokens is refused
BLOCK = 128  # columns between two matrix products; a multiple of GROUP


class CurvatureError(TritError):
    """A Hessian that cannot be encoded with; the caller encodes data-free and counts it."""


class SingularHessianError(CurvatureError):
    """No damping made the Hessian positive definite, or it has no live column."""


class TooFewTokensError(CurvatureError):
    """Fewer tokens than a quarter of the columns: their second moments say too little."""


@dataclass(frozen=True, eq=False)
class Curvature:
    """Second moments of a layer's inputs, damped, ordered and factored.

    Columns stand in the order of encoding: groups of 16 by descending sum of the Hessian's
    diagonal, the columns within a group as in the matrix. Kp = 16 G; places of a short last group
    beyond K hold columns of their own with curvature 1, whose weights are 0. All values are in
    units of 2**exponent, in which the mean diagonal lies in [1/2, 1).

    Attributes:
        columns: K.
        tokens: inputs that were summed.
        dead: bool [Kp], places whose column was 0 in every input.
        damping: what was added to the diagonal, relative to its mean over live columns.
        exponent: see above.
        order: int64 [Kp], the column of the matrix at each place; K or more beyond the matrix.
        hessian: float32 [Kp, Kp], damped, symmetric.
        triangle: float64 [Kp, Kp], upper triangular with hessian = triangle triangle^T.
        feedback: float32 [Kp, Kp], unit upper triangular: triangle over its diagonal, a column
            each. Entry [i, j] is the share of the error at i that column j compensates.
        importance: float32 [G, 16], squared diagonal of `triangle`: what a squared error costs at
            a place when the columns behind it are free to compensate.
        group_feedback, group_importance, group_solve: the same for each diagonal 16x16 block of
            the Hessian by itself, float32 [G, 16, 16], [G, 16] and [G, 16, 16]. The last is
            inverse(group triangle)^T over the diagonal: see `search.descend`.
    """

    columns: int
    tokens: int
    dead: np.ndarray
    damping: float
    exponent: int
    order: np.ndarray
    hessian: np.ndarray
    triangle: np.ndarray
    feedback: np.ndarray
    importance: np.ndarray
    group_feedback: np.ndarray
    group_importance: np.ndarray
    group_solve: np.ndarray

    @classmethod
    def of(cls, hessian: np.ndarray, tokens: int) -> Curvature:
        """From sum of x x^T over `tokens` inputs x of the layer.

        hessian: float64 or float32 [K, K], symmetric; it is not kept and not changed.

        Raises ValueError for another shape or dtype, for a value that is not finite and for a
        negative diagonal; TooFewTokensError; SingularHessianError where the Cholesky
        decomposition fails at every damping.
        """
        diagonal = _checked_diagonal(hessian)
        columns = len(diagonal)
        if tokens * LEAST_TOKENS < columns:
            raise TooFewTokensError(
                f"{tokens} tokens reached a layer of {columns} inputs, fewer than a quarter"
            )
        live = diagonal > 0
        if not live.any():
            raise SingularHessianError(f"all {columns} inputs of the layer are 0 in every token")
        exponent = int(np.frexp(diagonal[live].mean())[1])
        diagonal = np.ldexp(diagonal, -exponent)
        mean = float(diagonal[live].mean())
        order = _order(diagonal)
        scaled = _ordered(hessian, exponent, order)
        filled = np.ones(len(order))
        inside = order < columns
        filled[inside] = np.where(live, diagonal, mean)[order[inside]]
        dead = np.zeros(len(order), bool)
        dead[inside] = ~live[order[inside]]
        damping = DAMPING
        for _ in range(DAMPINGS):
            np.fill_diagonal(scaled, filled + damping * mean)
            try:
                triangle = upper_triangle(scaled)
            except np.linalg.LinAlgError:
                damping *= 10
            else:
                break
        else:
            raise SingularHessianError(
                f"the second moments of {tokens} inputs are not positive definite, "
                f"even with {damping / 10:g} of their mean on the diagonal"
            )
        root = np.diagonal(triangle)
        starts = range(0, len(order), GROUP)
        blocks = np.stack([scaled[s : s + GROUP, s : s + GROUP] for s in starts])
        group_triangle = np.linalg.cholesky(blocks[:, ::-1, ::-1])[:, ::-1, ::-1]
        group_root = np.diagonal(group_triangle, axis1=1, axis2=2)
        group_solve = np.swapaxes(np.linalg.inv(group_triangle), 1, 2) / group_root[:, None, :]
        return cls(
            columns=columns,
            tokens=tokens,
            dead=dead,
            damping=damping,
            exponent=exponent,
            order=order,
            hessian=scaled.astype(np.float32),
            triangle=triangle,
            feedback=(triangle / root).astype(np.float32),
            importance=np.square(root).reshape(-1, GROUP).astype(np.float32),
            group_feedback=(group_triangle / group_root[:, None, :]).astype(np.float32),
            group_importance=np.square(group_root).astype(np.float32),
            group_solve=np.ascontiguousarray(group_solve, np.float32),
        )

    def solve(self, right: np.ndarray) -> np.ndarray:
        """hessian^-1 right, float64 [Kp, n], by substitution in blocks; right is overwritten."""
        spans = [slice(s, min(s + BLOCK, len(right))) for s in range(0, len(right), BLOCK)]
        inverse = [np.linalg.inv(self.triangle[span, span]) for span in spans]
        for span, own in zip(reversed(spans), reversed(inverse), strict=True):
            right[span] = own @ right[span]
            right[: span.start] -= self.triangle[: span.start, span] @ right[span]
        for span, own in zip(spans, inverse, strict=True):
            right[span] = own.T @ right[span]
            right[span.stop :] -= self.triangle[span, span.stop :].T @ right[span]
        return right


def _checked_diagonal(hessian: np.ndarray) -> np.ndarray:
    if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1] or not hessian.size:
        raise ValueError(f"hessian has shape {list(hessian.shape)}, expected [K, K]")
    if hessian.dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise ValueError(f"hessian is {hessian.dtype}, expected float64 or float32")
    if not np.isfinite(hessian).all():
        row, column = np.argwhere(~np.isfinite(hessian))[0]
        raise ValueError(f"hessian[{row}, {column}] is {hessian[row, column]}, not a finite number")
    diagonal = np.diagonal(hessian).astype(np.float64)
    if (diagonal < 0).any():
        first = int(np.argmax(diagonal < 0))
        raise ValueError(f"hessian[{first}, {first}] is {diagonal[first]}, expected 0 or above")
    return diagonal


def _order(diagonal: np.ndarray) -> np.ndarray:
    """Places to columns: groups by descending sum of the diagonal, the first of equals first."""
    groups = groups_of(len(diagonal))
    padded = np.zeros(groups * GROUP)
    padded[: len(diagonal)] = diagonal
    by_weight = np.argsort(-padded.reshape(groups, GROUP).sum(axis=1), kind="stable")
    return (by_weight[:, None] * GROUP + np.arange(GROUP)).ravel()


def _ordered(hessian: np.ndarray, exponent: int, order: np.ndarray) -> np.ndarray:
    """float64 [Kp, Kp] in units of 2**exponent; rows and columns beyond K are 0."""
    inside = np.flatnonzero(order < len(hessian))
    if len(inside) == len(order):
        return np.ldexp(hessian[np.ix_(order, order)].astype(np.float64, copy=False), -exponent)
    scaled = np.zeros((len(order), len(order)))
    part = hessian[np.ix_(order[inside], order[inside])].astype(np.float64, copy=False)
    scaled[np.ix_(inside, inside)] = np.ldexp(part, -exponent)
    return scaled


def upper_triangle(matrix: np.ndarray) -> np.ndarray:
    """R float64, upper triangular with R R^T = matrix. Raises LinAlgError where there is none."""
    flipped = matrix[::-1, ::-1].astype(np.float64, copy=False)
    return np.ascontiguousarray(np.linalg.cholesky(flipped)[::-1, ::-1])
