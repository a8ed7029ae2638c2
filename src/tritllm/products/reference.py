"""The products in NumPy: what the native kernels compute, readable and slow.

`exact` is what a float32 matrix product of the decoded weights gives. `quantized` has int8
activations: every 16 along K, the weights' own groups, share one float32 scale, and each group's
dot product is an exact integer; `per_token` has one scale for each row of x. Kernels agree with
them up to the rounding of float32 sums; `bound` says by how much they may differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tritllm.codec import reference as codec
from tritllm.format.layout import groups_of
from tritllm.format.trits import GROUP

SMALLEST = np.float32(2.0**-100)  # a group whose magnitudes are all below counts as zero


@dataclass(frozen=True)
class Quantized:
    """Activations of `rows` batch rows: q int8 [rows, G, 16], scale float32 [rows, G]."""

    q: np.ndarray
    scale: np.ndarray


def quantize(x: np.ndarray) -> Quantized:
    """X [rows, K] of any float type -> int8 and scales; the last group is filled up with zeros.

    s = max|x| / 127 and q = rint(x * (127 / max|x|)), half to even, in float32. A group with a NaN
    or an infinity has q = 0 and a NaN for its scale.
    """
    rows, columns = x.shape
    padded = np.zeros((rows, groups_of(columns) * GROUP), np.float32)
    padded[:, :columns] = x
    return quantize_groups(padded.reshape(rows, -1, GROUP))


def quantize_groups(groups: np.ndarray) -> Quantized:
    """X float32 [..., size] -> q int8 [..., size], scale float32 [...]; a group is the last axis.

    See `quantize`.
    """
    largest = np.abs(groups).max(axis=-1)
    finite = np.isfinite(largest)
    present = finite & (largest >= SMALLEST)
    safe = np.where(present, largest, np.float32(1))
    inverse = np.where(present, np.float32(127) / safe, np.float32(0))
    q = np.rint(np.where(present[..., None], groups, 0) * inverse[..., None]).astype(np.int8)
    scale = np.where(present, safe / np.float32(127), np.float32(0))
    return Quantized(q, np.where(finite, scale, np.float32(np.nan)))


def group_dots(level: np.ndarray, x: Quantized) -> np.ndarray:
    """Levels int8 [N, K] -> int32 [rows, N, G]: dot products of groups with their activations."""
    n, columns = level.shape
    padded = np.zeros((n, x.q.shape[1] * GROUP), np.int32)
    padded[:, :columns] = level
    return np.einsum("bgi,ngi->bng", x.q.astype(np.int32), padded.reshape(n, -1, GROUP))


def quantized(level: np.ndarray, index: np.ndarray, steps: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Y float32 [rows, N] of levels [N, K], scale indices [N, G], steps float32 [27], x [rows, K].

    y = sum over groups of float32(dot) * s * step, each product rounded, summed in order.
    """
    return _sum_of_groups(level, index, steps, quantize(x))


def quantize_token(x: np.ndarray) -> Quantized:
    """As `quantize`, with one scale for each row, which its groups share.

    t = 127 / max(|x|, 1e-5), q = rint(x * t) and s = 1 / t (Wang et al., 2023). A row with a NaN or
    an infinity has q = 0 and a NaN for its scale.
    """
    rows, columns = x.shape
    padded = np.zeros((rows, groups_of(columns) * GROUP), np.float32)
    padded[:, :columns] = x
    largest = np.maximum(np.abs(padded).max(axis=1, keepdims=True), np.float32(1e-5))
    finite = np.isfinite(largest)
    inverse = np.float32(127) / np.where(finite, largest, np.float32(1))
    q = np.rint(np.where(finite, padded, 0) * inverse).astype(np.int8)
    scale = np.where(finite, np.float32(1) / inverse, np.float32(np.nan))
    return Quantized(q.reshape(rows, -1, GROUP), np.repeat(scale, groups_of(columns), axis=1))


def per_token(level: np.ndarray, index: np.ndarray, steps: np.ndarray, x: np.ndarray) -> np.ndarray:
    """As `quantized`, with activations rounded by tokens."""
    return _sum_of_groups(level, index, steps, quantize_token(x))


def _sum_of_groups(
    level: np.ndarray, index: np.ndarray, steps: np.ndarray, activations: Quantized
) -> np.ndarray:
    dots = group_dots(level, activations).astype(np.float32)
    terms = dots * activations.scale[:, None, :] * steps[index][None]
    return np.cumsum(terms, axis=2, dtype=np.float32)[..., -1]


SUPERBLOCK = 192  # columns


def quantize_superblocks(x: np.ndarray) -> Quantized:
    """As `quantize`, a scale for each 192 columns: q int8 [rows, S, 192], scale [rows, S]."""
    rows, columns = x.shape
    padded = np.zeros((rows, -(-columns // SUPERBLOCK) * SUPERBLOCK), np.float32)
    padded[:, :columns] = x
    return quantize_groups(padded.reshape(rows, -1, SUPERBLOCK))


def round_weights(
    level: np.ndarray, index: np.ndarray, steps: np.ndarray, largest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Levels int8 [N, K], scale indices [N, G], steps float32 [27] -> w int8 [N, S, 192] and its
    scale float32 [N, S]: weights rounded to int8 with one scale for each row and 192 columns.

    largest: L, the largest level at this depth. top = max |step| of a superblock's groups, m =
    rint(step * (32512 / (L * top))) and w = (level * m + 128) >> 8, so |w| <= 127.
    """
    n, columns = level.shape
    supers, share = -(-columns // SUPERBLOCK), SUPERBLOCK // GROUP
    groups = np.zeros((n, supers * share), np.float32)
    groups[:, : index.shape[1]] = steps[index]
    groups = groups.reshape(n, supers, share)
    span = np.float32(largest) * np.abs(groups).max(axis=2)
    factor = np.where(span > 0, np.float32(32512) / np.where(span > 0, span, 1), np.float32(0))
    m = np.rint(groups * factor[..., None]).astype(np.int32)
    padded = np.zeros((n, supers * SUPERBLOCK), np.int32)
    padded[:, :columns] = level
    product = padded.reshape(n, supers, share, GROUP) * m[..., None]
    w = ((product + 128) >> 8).reshape(n, supers, SUPERBLOCK).astype(np.int8)
    return w, span / np.float32(127)


def superblocks(
    level: np.ndarray, index: np.ndarray, steps: np.ndarray, x: np.ndarray, largest: int
) -> np.ndarray:
    """As `quantized`, with weights and activations rounded by superblocks of 192 columns."""
    w, scale = round_weights(level, index, steps, largest)
    return _sum_of_superblocks(w.astype(np.int32), scale, x)


LARGEST_MULTIPLIER = 2047
KEEP_LEVELS = ("scalar", "avx2", "neon")  # instruction sets whose superblocks round steps alone


def round_steps(index: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale indices [N, G], steps float32 [27] -> m int32 [N, S, 12] and its scale float32 [N, S].

    top = max |step| of a superblock's groups, m = rint(step * (2047 / top)), scale = top / 2047.
    """
    n, share = len(index), SUPERBLOCK // GROUP
    groups = np.zeros((n, -(-index.shape[1] // share) * share), np.float32)
    groups[:, : index.shape[1]] = steps[index]
    groups = groups.reshape(n, -1, share)
    top, largest = np.abs(groups).max(axis=2), np.float32(LARGEST_MULTIPLIER)
    factor = np.where(top > 0, largest / np.where(top > 0, top, 1), np.float32(0))
    return np.rint(groups * factor[..., None]).astype(np.int32), top / largest


def level_superblocks(
    level: np.ndarray, index: np.ndarray, steps: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """As `superblocks`, where weights keep their levels and steps are rounded (KEEP_LEVELS)."""
    m, scale = round_steps(index, steps)
    n, supers, share = m.shape
    padded = np.zeros((n, supers * SUPERBLOCK), np.int32)
    padded[:, : level.shape[1]] = level
    w = padded.reshape(n, supers, share, GROUP) * m[..., None]
    return _sum_of_superblocks(w.reshape(n, supers, SUPERBLOCK), scale, x)


def _sum_of_superblocks(w: np.ndarray, scale: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Of integer weights int32 [N, S, 192] and their scales [N, S]."""
    activations = quantize_superblocks(x)
    dots = np.einsum("bsi,nsi->bns", activations.q.astype(np.int32), w)
    terms = dots.astype(np.float32) * activations.scale[:, None, :] * scale[None]
    return np.cumsum(terms, axis=2, dtype=np.float32)[..., -1]


def exact(level: np.ndarray, index: np.ndarray, steps: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Y float32 [rows, N] from the decoded weights, summed in float64 and rounded once."""
    weight = codec.dequantize(level, index, steps)
    return (x.astype(np.float64) @ weight.T.astype(np.float64)).astype(np.float32)


def bound(level: np.ndarray, index: np.ndarray, steps: np.ndarray, x: np.ndarray) -> np.ndarray:
    """float64 [rows, N]: how far a float32 sum in any order may be from the reference.

    n additions and two roundings a term, each 2**-24 relative to the sum of the magnitudes; the
    activations' own rounding adds to those magnitudes at most 1/254 of their group's largest.
    """
    rows, columns = x.shape
    padded = np.zeros((rows, index.shape[1] * GROUP))
    padded[:, :columns] = np.abs(x.astype(np.float64))
    groups = padded.reshape(rows, -1, GROUP)
    magnitude = (groups + groups.max(axis=2, keepdims=True) / 254).reshape(rows, -1)[:, :columns]
    weight = np.abs(codec.dequantize(level, index, steps)).astype(np.float64)
    return (columns + 4) * 2.0**-24 * (magnitude @ weight.T)
