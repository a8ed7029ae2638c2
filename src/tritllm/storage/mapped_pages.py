"""Giving a mapped file's pages back to the system once their bytes have been used.

Linux is told MADV_PAGEOUT, for memory that is mapped from a file on a disk alone: anonymous memory
and files that live in memory (tmpfs) would be written to swap. The system still keeps the pages of
a file that the user neither owns nor may write, and those that another process maps; so what was
really given back is counted.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_PAGE_OUT = 21  # MADV_PAGEOUT
_MAPS, _MOUNTS = Path("/proc/self/maps"), Path("/proc/self/mountinfo")
_IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"}
_PROBED = 64 * mmap.PAGESIZE


class Released(NamedTuple):
    """Bytes of whole pages that the system was asked to take back, and those that it took."""

    asked: int
    given_back: int


_total = [0, 0]


def release_pages(ranges: Iterable[tuple[int, int]]) -> Released:
    """Give back what of some memory is mapped from a file; it is read again if it is needed.

    ranges: (address, bytes). Memory of other kinds, and other systems, are left alone.
    """
    asked = given_back = 0
    advise, resident = _system()
    wanted = [(start, stop) for start, stop in map(_whole_pages, ranges) if start < stop]
    if advise is None or not wanted:
        return Released(0, 0)
    for start, stop in _of_files(wanted):
        before = resident(start, stop)
        if not advise(start, stop - start, _PAGE_OUT):
            asked += stop - start
            given_back += max(0, before - resident(start, stop))
    _total[0] += asked
    _total[1] += given_back
    return Released(asked, given_back)


def released() -> Released:
    """The sum of what `release_pages` did in this process."""
    return Released(*_total)


def probe(folder: Path | None = None) -> Released:
    """Try it on a new file of this user's in `folder`, by default the one for temporary files.

    Raises OSError where no file can be written there.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(_PROBED))
        file.flush()
        os.fsync(file.fileno())  # a page that is not yet on the disk stays
        with mmap.mmap(file.fileno(), _PROBED, access=mmap.ACCESS_COPY) as view:
            pages = np.frombuffer(view, np.uint8)
            int(pages[:: mmap.PAGESIZE].sum())  # map each page
            found = release_pages([(pages.ctypes.data, pages.nbytes)])
            del pages
    return found


def _whole_pages(memory: tuple[int, int]) -> tuple[int, int]:
    address, nbytes = memory
    return -(-address // mmap.PAGESIZE) * mmap.PAGESIZE, (
        (address + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    )


def _of_files(wanted: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The parts of some ranges that are mapped from files on disks."""
    for line in _MAPS.read_bytes().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) < 6 or not fields[5].startswith(b"/") or fields[4] == b"0":
            continue
        begin, end = (int(text, 16) for text in fields[0].split(b"-"))
        for start, stop in wanted:
            if begin < stop and start < end and _is_on_disk(fields[3], fields[5]):
                yield max(begin, start), min(end, stop)


def _is_on_disk(device: bytes, path: bytes) -> bool:
    if path.startswith((b"/memfd:", b"/SYSV", b"/dev/zero", b"/dev/shm/", b"/anon_hugepage")):
        return False
    major, _, minor = device.partition(b":")
    return (int(major, 16), int(minor, 16)) not in _devices_in_memory()


@cache
def _devices_in_memory() -> frozenset[tuple[int, int]]:
    found = set()
    for line in _MOUNTS.read_text(errors="replace").splitlines():
        mount, _, rest = line.partition(" - ")
        if rest.split(" ", 1)[0] in _IN_MEMORY:
            major, _, minor = mount.split()[2].partition(":")
            found.add((int(major), int(minor)))
    return frozenset(found)


@cache
def _system() -> tuple[Any, Any]:
    """madvise, and the bytes of a range that are in memory; None where there is no such advice."""
    if sys.platform != "linux" or not _MAPS.exists():
        return None, None
    library = ctypes.CDLL(None)
    advise, mincore = library.madvise, library.mincore
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)

    def resident(start: int, stop: int) -> int:
        pages = np.zeros((stop - start) // mmap.PAGESIZE, np.uint8)
        mincore(start, stop - start, pages.ctypes.data)
        return int((pages & 1).sum()) * mmap.PAGESIZE

    return advise, resident
