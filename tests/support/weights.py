"""Random packed matrices, with the levels and indices that they hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tritllm.codec.tensor import TritTensor
from tritllm.format import trits


@dataclass(frozen=True)
class Weights:
    tensor: TritTensor
    index: np.ndarray

    def at(self, planes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Levels, indices and steps of the top `planes` planes."""
        return self.tensor.levels(planes), self.index, self.tensor.codebook[planes - 1]


def random_weights(
    seed: int, rows: int, columns: int, depth: int, row_scales: bool = False
) -> Weights:
    """row_scales: every row has one."""
    rng = np.random.default_rng(seed)
    limit = trits.max_level(depth)
    level = rng.integers(-limit, limit + 1, (rows, columns)).astype(np.int8)
    index = rng.integers(0, 27, (rows, -(-columns // 16))).astype(np.uint8)
    if row_scales:
        index[:] = index[:, :1]
    steps = np.sort(rng.uniform(1e-3, 1e-1, (depth, 27)).astype(np.float32), axis=1)
    packed = trits.pack_trits(trits.levels_to_trits(level, depth))
    scale = trits.pack_scale_index(index)
    return Weights(TritTensor(packed, scale, steps, columns), index)
