"""Cutting a packed matrix for tensor parallelism, on the bytes of its planes and scale indices.

Rows can be cut anywhere. Columns can be cut where a group of 16 ends: at a multiple of 80, where a
byte of either tensor ends too, a cut is a slice; elsewhere the trits move within their bytes. Each
part keeps the whole codebook.
"""

from __future__ import annotations

import numpy as np

from tritllm.format.layout import groups_of
from tritllm.format.trits import GROUP, TRITS_PER_BYTE, bytes_of, check_trits

_BYTES = np.arange(243)
_ZERO_TRITS = tuple((3**n - 1) // 2 for n in range(TRITS_PER_BYTE))  # digits 1, n of them


def cut_rows(
    weight: np.ndarray, scale: np.ndarray, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Planes and scale indices of the rows start..stop-1, sharing memory.

    weight: uint8 [d, N, ceil(K/5)]; scale: uint8 [N, ceil(3G/5)].

    Raises ValueError unless 0 <= start < stop <= N.
    """
    _check_range("rows", start, stop, weight.shape[1])
    return weight[:, start:stop], scale[start:stop]


def cut_columns(
    weight: np.ndarray, scale: np.ndarray, in_features: int, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Planes and scale indices of the columns start..stop-1, a matrix of K = stop - start.

    weight: uint8 [d, N, ceil(K/5)]; scale: uint8 [N, ceil(3G/5)]; in_features: K.
    The results share memory where both ends are multiples of 80 (or the row's end), else they are
    new arrays.

    Raises ValueError unless 0 <= start < stop <= K, start is a multiple of 16, and stop is one or
    is K; also for a byte that is not five trits where the trits have to move.
    """
    return (
        cut_plane_columns(weight, in_features, start, stop),
        cut_scale_columns(scale, in_features, start, stop),
    )


def cut_plane_columns(weight: np.ndarray, in_features: int, start: int, stop: int) -> np.ndarray:
    """The planes' part of `cut_columns`, which raises the same."""
    _check_columns(in_features, start, stop)
    return _cut_trits(weight, in_features, start, stop)


def cut_scale_columns(scale: np.ndarray, in_features: int, start: int, stop: int) -> np.ndarray:
    """The scale indices' part of `cut_columns`, which raises the same."""
    _check_columns(in_features, start, stop)
    return _cut_trits(scale, 3 * groups_of(in_features), 3 * (start // GROUP), 3 * groups_of(stop))


def _check_columns(in_features: int, start: int, stop: int) -> None:
    _check_range("columns", start, stop, in_features)
    for end in (start, stop):
        if end % GROUP and end != in_features:
            raise ValueError(
                f"columns {start}..{stop} of {in_features}: a cut must be at a multiple of {GROUP}"
            )


def _check_range(what: str, start: int, stop: int, size: int) -> None:
    if not 0 <= start < stop <= size:
        raise ValueError(f"{what} {start}..{stop} are not within 0..{size}")


def _cut_trits(packed: np.ndarray, length: int, start: int, stop: int) -> np.ndarray:
    """Trits start..stop-1 of rows of `length` trits, uint8 [..., ceil(length/5)]."""
    first, shift = divmod(start, TRITS_PER_BYTE)
    part = packed[..., first : bytes_of(stop)]
    last = (stop - start) % TRITS_PER_BYTE  # trits in the result's last byte, 0 where it is full
    if not shift and (not last or stop == length):
        return part
    check_trits(part, length - TRITS_PER_BYTE * first if stop == length else part.shape[-1] * 5)
    width = bytes_of(stop - start)
    if shift:
        upper = (_BYTES // 3**shift).astype(np.uint8)  # the trits from `shift` on, moved down
        lower = (_BYTES % 3**shift * 3 ** (TRITS_PER_BYTE - shift)).astype(np.uint8)
        moved = upper[part[..., :width]]
        following = part[..., 1 : width + 1]
        moved[..., : following.shape[-1]] += lower[following]
    else:
        moved = part.copy()
    if last:
        moved[..., -1] = moved[..., -1] % 3**last + _ZERO_TRITS[TRITS_PER_BYTE - last] * 3**last
    return moved
