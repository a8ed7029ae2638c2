"""Pages of files on disks, and of nothing else, are given back and counted."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from tritllm.storage import mapped_pages

pytestmark = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc")
PAGES = 512
BYTES = PAGES * mmap.PAGESIZE


@pytest.fixture
def advised(monkeypatch):
    """The ranges that the system is asked to take back."""
    real, resident = mapped_pages._system()
    ranges = []

    def advise(start, length, advice):
        ranges.append((start, length))
        return real(start, length, advice)

    monkeypatch.setattr(mapped_pages, "_system", lambda: (advise, resident))
    return ranges


def mapped(descriptor: int) -> np.ndarray:
    """Private pages of a file, each of them read; their content is 0, 1, 2, ..."""
    os.write(descriptor, bytes(range(256)) * (BYTES // 256))
    os.fsync(descriptor)
    view = np.frombuffer(mmap.mmap(descriptor, BYTES, access=mmap.ACCESS_COPY), np.uint8)
    assert int(view[:: mmap.PAGESIZE].sum()) == 0
    return view


def on_disk(path: Path) -> bool:
    return (os.major(path.stat().st_dev), os.minor(path.stat().st_dev)) not in (
        mapped_pages._devices_in_memory()
    )


def test_pages_of_a_file_are_given_back_and_counted(tmp_path, advised):
    if not on_disk(tmp_path):
        pytest.skip("temporary files live in memory")
    _, resident = mapped_pages._system()
    with (tmp_path / "file").open("wb+") as file:
        view = mapped(file.fileno())
    at = view.ctypes.data
    assert resident(at, at + BYTES) == BYTES
    before = mapped_pages.released()
    found = mapped_pages.release_pages([(at + 1, BYTES - 2)])  # two pages are not whole
    inner = BYTES - 2 * mmap.PAGESIZE
    assert advised == [(at + mmap.PAGESIZE, inner)]
    assert found == (inner, inner - resident(at + mmap.PAGESIZE, at + mmap.PAGESIZE + inner))
    after = mapped_pages.released()
    assert (after.asked - before.asked, after.given_back - before.given_back) == found
    assert view.tobytes() == bytes(range(256)) * (BYTES // 256)  # read again


def test_anonymous_memory_is_never_advised(advised):
    for view in (np.ones(BYTES, np.uint8), np.frombuffer(mmap.mmap(-1, BYTES), np.uint8)):
        assert mapped_pages.release_pages([(view.ctypes.data, view.nbytes)]) == (0, 0)
    assert advised == []


def test_files_in_memory_are_never_advised(advised):
    descriptor = os.memfd_create("tritllm-test")
    view = mapped(descriptor)
    os.close(descriptor)
    assert mapped_pages.release_pages([(view.ctypes.data, view.nbytes)]) == (0, 0)
    shared = Path("/dev/shm")
    if os.access(shared, os.W_OK):
        path = shared / f"tritllm-test-{os.getpid()}"
        try:
            with path.open("wb+") as file:
                view = mapped(file.fileno())
        finally:
            path.unlink(missing_ok=True)
        assert mapped_pages.release_pages([(view.ctypes.data, view.nbytes)]) == (0, 0)
    assert advised == []


def test_a_file_on_a_memory_file_system_is_never_advised(tmp_path, advised, monkeypatch):
    device = tmp_path.stat().st_dev
    numbers = frozenset({(os.major(device), os.minor(device))})
    monkeypatch.setattr(mapped_pages, "_devices_in_memory", lambda: numbers)
    with (tmp_path / "file").open("wb+") as file:
        view = mapped(file.fileno())
    assert mapped_pages.release_pages([(view.ctypes.data, view.nbytes)]) == (0, 0)
    assert advised == []


def test_pages_that_the_system_keeps_are_not_counted(tmp_path, monkeypatch):
    """As for a file that this user neither owns nor may write: it says yes, and keeps them."""
    if not on_disk(tmp_path):
        pytest.skip("temporary files live in memory")
    _, resident = mapped_pages._system()
    monkeypatch.setattr(mapped_pages, "_system", lambda: (lambda *_: 0, resident))
    assert mapped_pages.probe(tmp_path) == (64 * mmap.PAGESIZE, 0)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs to be root")
def test_a_file_of_another_user_is_reported_truthfully(tmp_path):
    """In a child that is another user, who may only read the file."""
    if not on_disk(tmp_path):
        pytest.skip("temporary files live in memory")
    path = tmp_path / "file"
    with path.open("wb+") as file:
        file.write(bytes(BYTES))
        os.fsync(file.fileno())
    path.chmod(0o644)
    descriptor = os.open(path, os.O_RDONLY)
    mapped_pages._devices_in_memory()
    child = os.fork()
    if not child:
        try:
            os.setuid(65534)
            view = np.frombuffer(mmap.mmap(descriptor, BYTES, access=mmap.ACCESS_READ), np.uint8)
            assert int(view[:: mmap.PAGESIZE].sum()) == 0
            at = view.ctypes.data
            found = mapped_pages.release_pages([(at, BYTES)])
            left = mapped_pages._system()[1](at, at + BYTES)
            os._exit(0 if found == (BYTES, BYTES - left) else 1)
        finally:
            os._exit(2)
    os.close(descriptor)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
