"""Large reads past the system's page cache, which cost a twentieth of the processor's time.

A file read once has no use of the cache. What is in it already is read from there; where the system
or the file system offers no direct reads, or memory is not aligned for them, nothing is read here
and the caller reads as usual.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 4096  # what direct reads are aligned to, in the file and in memory
LEAST = 1 << 20  # bytes below which it does not pay


def memory_for(offset: int, nbytes: int, spare: np.ndarray | None = None) -> np.ndarray:
    """Memory uint8 [nbytes] into which a file's bytes from `offset` can be read directly.

    spare: an array of `BLOCK` bytes more, the `base` of an earlier result, to use if it suffices.
    """
    if spare is None or spare.nbytes < nbytes + BLOCK:
        spare = np.empty(nbytes + BLOCK, np.uint8)
    start = (offset - spare.ctypes.data) % BLOCK
    return spare[start : start + nbytes]


def read_directly(path: Path, offset: int, data: memoryview) -> tuple[int, int]:
    """Fill the part [start, stop) of `data`, which is to have the file's bytes from `offset`.

    Returns start and stop; (0, 0) where nothing was read.
    """
    start = -offset % BLOCK
    stop = len(data) - (offset + len(data)) % BLOCK
    if stop - start < LEAST or not hasattr(os, "O_DIRECT"):
        return 0, 0
    address = np.frombuffer(data, np.uint8).ctypes.data
    if (address - offset) % BLOCK:
        return 0, 0
    try:
        if _is_cached(path, offset + start, stop - start):
            return 0, 0
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except (OSError, ValueError):  # a file too short: the usual read says what is wrong
        return 0, 0
    try:
        done = start
        while done < stop:
            count = os.preadv(descriptor, [data[done:stop]], offset + done)
            if count <= 0 or count % BLOCK:
                return 0, 0
            done += count
    except OSError:
        return 0, 0
    finally:
        os.close(descriptor)
    return start, stop


def _is_cached(path: Path, offset: int, nbytes: int) -> bool:
    """Whether most of a file's bytes are in the page cache. offset: a multiple of BLOCK."""
    pages = -(-nbytes // mmap.PAGESIZE)
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_READ, offset=offset) as view,
    ):
        resident = np.zeros(pages, np.uint8)
        mapped = np.frombuffer(view, np.uint8)
        failed = _mincore()(mapped.ctypes.data, nbytes, resident.ctypes.data)
        del mapped
    return bool(failed) or 2 * int((resident & 1).sum()) > pages


@cache
def _mincore() -> Any:
    function = ctypes.CDLL(None).mincore
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    return function
