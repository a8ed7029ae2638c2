"""A deep file whose top planes are a shallower calibrated model: docs/calibration.md, section 7."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from tritllm.codec.arguments import checked_depth, checked_threads, checked_weight
from tritllm.codec.calibrated.curvature import Curvature
from tritllm.codec.calibrated.encode import CalibratedMatrix, choose
from tritllm.codec.calibrated.matrix import Fit, Matrix
from tritllm.codec.calibrated.passes import Passes, loss
from tritllm.codec.calibrated.search import Limits
from tritllm.codec.encoders.v3 import V3
from tritllm.format.trits import max_level


def encode_nested(
    weight: np.ndarray,
    curvature: Curvature,
    cross: np.ndarray | None,
    depths: Sequence[int] = (2, 4),
    *,
    threads: int = 1,
    isa: str | None = None,
) -> CalibratedMatrix:
    """Encode at depths[-1] so that the top depths[0] planes are that depth's own encoding.

    The planes, indices and codebook row of depths[0] are `encode_calibrated`'s, bit for bit; each
    further depth chooses levels that begin with the planes before it. Arguments and errors as
    `encode_calibrated`; depths: two or more, ascending. The losses of the result are those at the
    last depth, where a nested file may lose more than data-free v3 does.
    """
    chain = [checked_depth(depth) for depth in depths]
    if len(chain) < 2 or any(a >= b for a, b in pairwise(chain)):
        raise ValueError(f"depths are {list(depths)}, expected two or more of 1..4, ascending")
    threads = checked_threads(threads)
    matrix = Matrix.of(checked_weight(weight), curvature, cross, threads)
    top = choose(matrix, chain[0], isa)
    fits = {chain[0]: top.fit or top.plain}
    for shallow, deep in pairwise(chain):
        fits[deep] = _deeper(matrix, fits[shallow], shallow, deep, isa)
    plain = matrix.fit_of(V3.encode(weight, chain[-1:], threads=threads)[chain[-1]])
    energy = matrix.energy() or np.inf
    before, after = loss(matrix, plain) / energy, loss(matrix, fits[chain[-1]]) / energy
    return CalibratedMatrix(matrix.write(fits, chain[-1]), before, after)


def _deeper(matrix: Matrix, upper: Fit, shallow: int, deep: int, isa: str | None) -> Fit:
    """Levels at `deep` whose top planes are `upper`, with its indices."""
    factor = np.float32(3 ** (deep - shallow))
    limits = Limits(max_level(deep - shallow), upper.level * factor, upper.index)
    passes = Passes(matrix, deep, limits, isa)
    return passes.refined(passes.start(upper.steps / factor))
