"""Levels, indices and steps as the arrays of the file."""

from __future__ import annotations

import numpy as np

from tritllm.codec import TritTensor
from tritllm.codec.codebooks import lower_steps
from tritllm.codec.reference import dequantize
from tritllm.format.trits import ENTRIES, levels_to_trits, pack_scale_index, pack_trits


def tensor_of(
    levels: np.ndarray, index: np.ndarray, steps: np.ndarray, weight: np.ndarray, depth: int
) -> TritTensor:
    """The tensor that decodes to float32(level) * steps[index], bit for bit.

    Args:
        levels: int8 [N, K], within the depth's levels.
        index: uint8 [N, G], entries of `steps`.
        steps: float32 [27], not negative, in any order: the file wants them ascending, so entries
            are renamed.
        weight: [N, K], the source's; `error` and `energy` are measured against it.
        depth: trits a weight.

    The steps of r < depth planes are one gain a depth, which fits what r planes decode to what all
    decode, by least squares: as section 5 of docs/codec.md, the encoded matrix being the original.
    """
    order = np.argsort(steps, kind="stable")
    rank = np.empty(ENTRIES, np.uint8)
    rank[order] = np.arange(ENTRIES, dtype=np.uint8)
    steps, index = steps[order], rank[index]
    codebook = np.empty((depth, ENTRIES), np.float32)
    codebook[depth - 1] = steps
    decoded = dequantize(levels, index, steps).astype(np.float64)
    for r in range(1, depth):
        top = np.rint(levels / np.float32(3 ** (depth - r))).astype(np.int8)
        base = dequantize(top, index, steps).astype(np.float64) * 3 ** (depth - r)
        norm = float(np.sum(base * base))
        gain = float(np.sum(decoded * base)) / norm if norm else 1.0
        codebook[r - 1] = lower_steps(steps, gain, depth, r)
    source = np.asarray(weight, np.float64)
    return TritTensor(
        pack_trits(levels_to_trits(levels, depth)),
        pack_scale_index(index),
        codebook,
        levels.shape[1],
        float(np.sum((source - decoded) ** 2)),
        float(np.sum(source * source)),
    )
