"""Encoding one matrix against the second moments of its inputs: docs/calibration.md."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tritllm.codec.arguments import checked_depth, checked_threads, checked_weight
from tritllm.codec.calibrated.curvature import Curvature
from tritllm.codec.calibrated.matrix import Fit, Matrix
from tritllm.codec.calibrated.passes import Passes, loss
from tritllm.codec.calibrated.search import Limits
from tritllm.codec.encoded import Encoded
from tritllm.codec.encoders.v3 import V3
from tritllm.format.trits import max_level


@dataclass(frozen=True, eq=False)
class CalibratedMatrix:
    """An encoded matrix and what calibrating it brought.

    encoded: the arrays of the file. loss_before, loss_after: tr((T - Q) H (T - Q)^T) of data-free
    v3 at the same depth and of `encoded`, both relative to tr(W H W^T), H the damped second
    moments and T the target; 0 where W is 0. loss_after is never above loss_before.
    """

    encoded: Encoded
    loss_before: float
    loss_after: float


def encode_calibrated(
    weight: np.ndarray,
    curvature: Curvature,
    cross: np.ndarray | None,
    depth: int,
    *,
    threads: int = 1,
    isa: str | None = None,
) -> CalibratedMatrix:
    """Encode weight [N, K] so that the layer's output on its inputs stays close to the wanted one.

    Args:
        weight: float16, bfloat16 or float32 [N, K].
        curvature: of the layer's inputs.
        cross: float64 or float32 [N, K], sum over the tokens that `curvature` sums of y x^T, y the
            output that is wanted beside W x: W (x_float - x) + (r_float - r). None is 0.
        depth: 1..4.
        threads: to share the rows.
        isa: the native instruction set; None for the fastest, "reference" for NumPy. Neither
            changes a bit of the result.

    Raises ValueError for another shape, dtype or depth and for a value that is not finite.
    """
    depth, threads = checked_depth(depth), checked_threads(threads)
    matrix = Matrix.of(checked_weight(weight), curvature, cross, threads)
    chosen = choose(matrix, depth, isa)
    encoded = chosen.data_free
    if chosen.fit is not None:
        encoded = matrix.write({depth: chosen.fit}, depth)
    return CalibratedMatrix(encoded, chosen.loss_before, chosen.loss_after)


@dataclass(frozen=True, eq=False)
class Chosen:
    """A depth's passes over a matrix; losses as in `CalibratedMatrix`.

    plain: the choices of data-free v3, `data_free` as arrays of the file. fit: the calibrated
    ones, None where they would lose no less.
    """

    data_free: Encoded
    plain: Fit
    fit: Fit | None
    loss_before: float
    loss_after: float


def choose(matrix: Matrix, depth: int, isa: str | None) -> Chosen:
    """All passes at one depth, from the steps of data-free v3."""
    encoded = V3.encode(matrix.weight, (depth,), threads=matrix.threads)[depth]
    plain = matrix.fit_of(encoded)
    passes = Passes(matrix, depth, Limits(max_level(depth)), isa)
    fit = passes.refined(passes.start(plain.steps))
    energy = matrix.energy() or np.inf
    before, after = loss(matrix, plain) / energy, loss(matrix, fit) / energy
    if not after < before:
        return Chosen(encoded, plain, None, before, before)
    return Chosen(encoded, plain, fit, before, after)
