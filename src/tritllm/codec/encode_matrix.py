"""Encoding a matrix: what is checked before an encoder sees it, and the tensors it becomes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tritllm.codec.arguments import (
    checked_column_weights,
    checked_depth,
    checked_threads,
    checked_weight,
)
from tritllm.codec.encoders import ENCODERS
from tritllm.codec.tensor import TritTensor
from tritllm.codec.ternary import encode_ternary


def encode(
    weight: np.ndarray,
    depth: int,
    codec: str = "v3",
    threads: int = 1,
    *,
    column_weights: np.ndarray | None = None,
) -> TritTensor:
    """Encode a matrix [out_features, in_features] at one depth. See `encode_depths`."""
    return encode_depths(weight, (depth,), codec, threads, column_weights=column_weights)[depth]


def encode_depths(
    weight: np.ndarray,
    depths: Sequence[int],
    codec: str = "v3",
    threads: int = 1,
    *,
    column_weights: np.ndarray | None = None,
) -> dict[int, TritTensor]:
    """Encode a matrix at several depths, sharing one reading and its statistics.

    Args:
        weight: [out_features, in_features], float16, bfloat16 (ml_dtypes) or float32.
        depths: trits a weight, each 1..4.
        codec: "v3" (least error, the default) or "v2" (the published rule).
        threads: threads to share the rows; the result is the same for any number.
        column_weights: float32 or float64 [in_features], finite and not negative: how much the
            squared error of each column counts (an importance matrix, a Hessian's diagonal). None
            counts all alike and gives the bits that ones give. For v3 alone, and slow: see
            `encoders/twins.py`. `error` and `energy` of the result count all columns alike.

    Raises ValueError for another shape, dtype, depth, codec, number of threads or column weights,
    and for the first weight that is not finite, naming its position.
    """
    weight = checked_weight(weight)
    depths = list(dict.fromkeys(checked_depth(depth) for depth in depths))
    if not depths:
        raise ValueError("no depth is given, expected some of 1..4")
    if not isinstance(codec, str) or codec not in ENCODERS:
        raise ValueError(f"codec is {codec!r}, expected one of {', '.join(ENCODERS)}")
    if column_weights is not None:
        column_weights = checked_column_weights(column_weights, weight.shape[1])
    encoded = ENCODERS[codec].encode(
        weight,
        depths,
        column_weights=column_weights,
        threads=checked_threads(threads),
    )
    return {
        depth: TritTensor(e.weight, e.scale, e.codebook, weight.shape[1], e.error, e.energy)
        for depth, e in encoded.items()
    }


def encode_source(
    weight: np.ndarray, depths: Sequence[int], codec: str = "v3", threads: int = 1
) -> dict[int, TritTensor]:
    """As `encode_depths`; but at depth 1 v3 keeps the trits of a matrix that is ternary already.

    What the quantizer makes of a matrix that nothing but its weights is known of. Where all groups
    of 16 weights have one magnitude, the bits are those of `encode_depths`.
    """
    weight = checked_weight(weight)
    kept = encode_ternary(weight) if 1 in depths and codec == "v3" else None
    if kept is None:
        return encode_depths(weight, depths, codec, threads)
    deeper = [depth for depth in depths if depth != 1]
    found = encode_depths(weight, deeper, codec, threads) if deeper else {}
    arrays = (kept.weight, kept.scale, kept.codebook)
    return {1: TritTensor(*arrays, weight.shape[1], kept.error, kept.energy, True), **found}
