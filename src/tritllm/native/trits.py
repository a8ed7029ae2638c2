"""Five trits a byte, by the library; the same functions as in `tritllm.codec.reference`."""

from __future__ import annotations

import numpy as np

from tritllm.codec import reference
from tritllm.native import library
from tritllm.native.arrays import address


def pack_trits(trits: np.ndarray) -> np.ndarray:
    """Trits int8 [..., n], each -1, 0 or 1 -> bytes uint8 [..., ceil(n/5)]."""
    trits = np.ascontiguousarray(trits, np.int8)
    *lead, n = trits.shape
    packed = np.empty((*lead, -(-n // 5)), np.uint8)
    if packed.size:
        library.library().tritllm_pack_trits(address(trits), trits.size // n, n, address(packed))
    return packed


def unpack_trits(packed: np.ndarray, n: int) -> np.ndarray:
    """Bytes uint8 [..., ceil(n/5)] -> trits int8 [..., n].

    Raises ValueError for a byte above 242, a missing trit that is not 0, or another width.
    """
    packed = np.ascontiguousarray(packed, np.uint8)
    *lead, width = packed.shape
    if width != -(-n // 5):
        raise ValueError(f"{width} bytes a row do not hold {n} trits")
    trits = np.empty((*lead, n), np.int8)
    if packed.size:
        rows = packed.size // width
        native = library.library()
        status = native.tritllm_unpack_trits(address(packed), rows, n, address(trits))
        if status != library.OK:
            reference.unpack_trits(packed, n)  # raises, naming the place
        library.check(status)
    return trits


def pack_scale_index(index: np.ndarray) -> np.ndarray:
    """Indices 0..26 uint8 [N, G] -> bytes uint8 [N, ceil(3G/5)]."""
    index = np.ascontiguousarray(index, np.uint8)
    rows, groups = index.shape
    packed = np.empty((rows, -(-3 * groups // 5)), np.uint8)
    if packed.size:
        native = library.library()
        native.tritllm_pack_scale_index(address(index), rows, groups, address(packed))
    return packed


def unpack_scale_index(packed: np.ndarray, groups: int) -> np.ndarray:
    """Bytes uint8 [N, ceil(3G/5)] -> indices 0..26 uint8 [N, G]. Raises as `unpack_trits`."""
    packed = np.ascontiguousarray(packed, np.uint8)
    rows, width = packed.shape
    if width != -(-3 * groups // 5):
        raise ValueError(f"{width} bytes a row do not hold {groups} indices")
    index = np.empty((rows, groups), np.uint8)
    if packed.size:
        native = library.library()
        status = native.tritllm_unpack_scale_index(address(packed), rows, groups, address(index))
        if status != library.OK:
            reference.unpack_scale_index(packed, groups)  # raises, naming the place
        library.check(status)
    return index
