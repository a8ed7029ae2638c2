"""Balanced ternary digits: levels to trits, five trits a byte, sizes. docs/format.md in NumPy.

Slow and clear; the native library reads and writes the same bytes.
"""

from __future__ import annotations

import numpy as np

GROUP = 16  # weights that share one scale, consecutive along in_features
ENTRIES = 27  # scales in a matrix's codebook: three trits
DEPTHS = (1, 2, 3, 4)
TRITS_PER_BYTE = 5  # 3**5 = 243 <= 256

_POWERS = tuple(3**i for i in range(TRITS_PER_BYTE))
_TRITS_OF_BYTE = np.stack([np.arange(256) // p % 3 - 1 for p in _POWERS], axis=1).astype(np.int8)


def bytes_of(trits: int) -> int:
    """Bytes that hold a row of so many trits."""
    return -(-trits // TRITS_PER_BYTE)


def max_level(depth: int) -> int:
    """L = (3**depth - 1) / 2, the largest level: 1, 4, 13, 40."""
    return (3**depth - 1) // 2


def levels_to_trits(level: np.ndarray, depth: int) -> np.ndarray:
    """Integers in [-L, L], any shape -> trits int8 [depth, ...], most significant first."""
    rest = level.astype(np.int16)
    trits = np.empty((depth, *level.shape), np.int8)
    for plane in range(depth - 1, -1, -1):
        trits[plane] = (rest + 1) % 3 - 1
        rest = (rest - trits[plane]) // 3
    return trits


def trits_to_levels(trits: np.ndarray) -> np.ndarray:
    """Trits [r, ...], most significant first -> levels int8 [...]: sum(trits[p] * 3**(r-1-p))."""
    level = np.zeros(trits.shape[1:], np.int8)
    for plane in trits:
        level = level * np.int8(3) + plane
    return level


def pack_trits(trits: np.ndarray) -> np.ndarray:
    """Trits int8 [..., n] -> bytes uint8 [..., ceil(n/5)]; byte = sum((t[i] + 1) * 3**i)."""
    n = trits.shape[-1]
    width = bytes_of(n)
    digits = np.ones((*trits.shape[:-1], width * TRITS_PER_BYTE), np.uint8)  # missing trits are 0
    digits[..., :n] = trits + np.int8(1)
    digits = digits.reshape(*trits.shape[:-1], width, TRITS_PER_BYTE)
    packed = np.zeros(digits.shape[:-1], np.uint8)
    for i, power in enumerate(_POWERS):
        packed += digits[..., i] * np.uint8(power)
    return packed


def check_trits(packed: np.ndarray, n: int) -> None:
    """Raise ValueError unless bytes uint8 [..., ceil(n/5)] are trits, 0 where there is none."""
    if packed.size and packed.max() > 242:
        where = np.unravel_index(int(np.argmax(packed > 242)), packed.shape)
        raise ValueError(
            f"byte {packed[where]} at {tuple(map(int, where))} is not five trits (0..242)"
        )
    last = TRITS_PER_BYTE * (packed.shape[-1] - 1)  # the first trit of the last byte
    if packed.size and _TRITS_OF_BYTE[packed[..., -1]][..., n - last :].any():
        raise ValueError(f"padding after trit {n} of a row is not zero")


def unpack_trits(packed: np.ndarray, n: int) -> np.ndarray:
    """Bytes uint8 [..., ceil(n/5)] -> trits int8 [..., n]. Raises as `check_trits`."""
    check_trits(packed, n)
    return _TRITS_OF_BYTE[packed].reshape(*packed.shape[:-1], -1)[..., :n]


def pack_scale_index(index: np.ndarray) -> np.ndarray:
    """Indices 0..26 uint8 [N, G] -> bytes uint8 [N, ceil(3G/5)]; each j as the trits of j - 13."""
    trits = levels_to_trits(index.astype(np.int16) - 13, 3)  # [3, N, G]
    return pack_trits(np.moveaxis(trits, 0, -1).reshape(index.shape[0], -1))


def unpack_scale_index(packed: np.ndarray, groups: int) -> np.ndarray:
    """Bytes uint8 [N, ceil(3G/5)] -> indices 0..26 uint8 [N, G]. Raises as `unpack_trits`."""
    trits = unpack_trits(packed, 3 * groups).reshape(packed.shape[0], groups, 3)
    return (trits_to_levels(np.moveaxis(trits, -1, 0)) + 13).astype(np.uint8)
