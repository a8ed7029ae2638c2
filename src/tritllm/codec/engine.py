"""Which implementation of the codec runs. All of them give the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tritllm.codec import reference


def encode(
    weight: np.ndarray, depths: Sequence[int], codec: str, threads: int
) -> dict[int, reference.Encoded]:
    """As `reference.encode`."""
    return reference.encode(weight, depths, codec)


def decode(
    planes: np.ndarray, scale: np.ndarray, steps: np.ndarray, out: np.ndarray, threads: int
) -> None:
    """Decode all given planes of packed rows into out [N, K]; steps float32 [27]."""
    for rows in reference.row_blocks(out.shape):
        level = reference.trits_to_levels(
            reference.unpack_trits(planes[:, rows], out.shape[1])
        )
        index = reference.unpack_scale_index(scale[rows], -(-out.shape[1] // reference.GROUP))
        with np.errstate(over="ignore"):  # beyond float16's range: infinite, the caller's to check
            out[rows] = reference.decode(level, index, steps).astype(out.dtype)
