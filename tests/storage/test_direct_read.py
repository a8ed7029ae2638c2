"""Reads past the page cache: the same bytes, or none."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from tritllm.errors import SourceError
from tritllm.storage import direct_read
from tritllm.storage.direct_read import BLOCK, LEAST, memory_for, read_directly
from tritllm.storage.model_files import LocalFiles

SIZE = 5 * LEAST + 1234
SPANS = [(0, SIZE), (8, SIZE - 8), (BLOCK, 2 * LEAST), (12345, 3 * LEAST + 77), (999, 100),
         (SIZE - LEAST - 1, LEAST + 1), (0, 0), (2 * BLOCK - 2, 2 * LEAST)]  # fmt: skip


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, SIZE, np.uint8).tobytes())
    return path


def forget(path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize(("offset", "nbytes"), SPANS)
def test_every_byte_is_read(path, offset, nbytes, shift, cached):
    """Into aligned memory, and into memory that is not."""
    expected = path.read_bytes()[offset : offset + nbytes]
    if not cached:
        forget(path)
    data = memory_for(offset + shift, nbytes)
    data[:] = 0
    LocalFiles(path.parent).read_into(path.name, offset, data.data)
    assert data.tobytes() == expected


@pytest.mark.parametrize(("offset", "nbytes"), SPANS)
def test_a_direct_read_fills_what_it_says(path, monkeypatch, offset, nbytes):
    monkeypatch.setattr(direct_read, "_is_cached", lambda *_: False)
    data = memory_for(offset, nbytes)
    data[:] = 7
    start, stop = read_directly(path, offset, data.data)
    assert (start, stop) == (0, 0) or (offset + start) % BLOCK == (offset + stop) % BLOCK == 0
    if nbytes >= LEAST + 2 * BLOCK and sys.platform == "linux" and stop == 0:
        pytest.skip("no direct reads on this file system")
    whole = path.read_bytes()[offset : offset + nbytes]
    assert data[start:stop].tobytes() == whole[start:stop]
    assert (data[:start] == 7).all()
    assert (data[stop:] == 7).all()


def test_what_is_cached_is_not_read_again(path):
    path.read_bytes()
    assert read_directly(path, 0, memory_for(0, SIZE).data) == (0, 0)


def test_a_system_that_refuses(path, monkeypatch):
    def refuse(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(direct_read, "_is_cached", lambda *_: False)
    monkeypatch.setattr(direct_read.os, "open", refuse)
    data = memory_for(0, SIZE)
    LocalFiles(path.parent).read_into(path.name, 0, data.data)
    assert data.tobytes() == path.read_bytes()


def test_a_file_that_ends_early_is_one_line(path, monkeypatch):
    monkeypatch.setattr(direct_read, "_is_cached", lambda *_: False)
    data = memory_for(0, 2 * SIZE)
    with pytest.raises(SourceError, match=f"got {SIZE} of {2 * SIZE} bytes at 0; truncated"):
        LocalFiles(path.parent).read_into(path.name, 0, data.data)


def test_spare_memory_is_used_where_it_suffices():
    first = memory_for(100, 3 * LEAST)
    second = memory_for(5001, 2 * LEAST, first.base)
    assert second.base is first.base
    assert (second.ctypes.data - 5001) % BLOCK == 0
    assert memory_for(0, 4 * LEAST, first.base).base is not first.base
