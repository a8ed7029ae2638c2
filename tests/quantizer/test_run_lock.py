"""One run at a time writes into a folder, also at the moment when a run removes its lock."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest

from tritllm.errors import OutputError
from tritllm.quantizer.run_lock import FOLDER, RunLock

ROUNDS = 150
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")


def hold_and_remove(out: Path, wanted: int, failures) -> None:
    """Take the lock `wanted` times and remove it; note when another holds it as well."""
    mark = out / "held"
    taken = 0
    while taken < wanted:
        try:
            lock = RunLock(out)
        except OutputError:
            continue
        try:
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            failures.put("two hold the lock")
            return
        taken += 1
        mark.unlink()
        lock.remove()
    failures.put("")


@posix
def test_the_lock_is_never_held_twice_though_its_holder_removes_it(tmp_path):
    forks = multiprocessing.get_context("fork")
    failures = forks.Queue()
    children = [
        forks.Process(target=hold_and_remove, args=(tmp_path, ROUNDS, failures)) for _ in range(4)
    ]
    for child in children:
        child.start()
    assert [failures.get(timeout=100) for _ in children] == [""] * 4
    for child in children:
        child.join()
    assert list(tmp_path.iterdir()) == []


def test_a_file_locked_after_it_was_removed_does_not_count(tmp_path, monkeypatch):
    """The holder removes the file between another's opening and locking it."""
    first = RunLock(tmp_path)
    lock_of_first = os.open

    def removed_after_opening(path, *arguments):
        descriptor = lock_of_first(path, *arguments)
        if str(path).endswith("lock"):
            monkeypatch.setattr(os, "open", lock_of_first)
            first.remove()
        return descriptor

    monkeypatch.setattr(os, "open", removed_after_opening)
    second = RunLock(tmp_path)
    assert (tmp_path / FOLDER / "lock").exists()
    with pytest.raises(OutputError, match="another run is writing here"):
        RunLock(tmp_path)
    second.remove()
    assert not (tmp_path / FOLDER).exists()


def hold_and_wait(out: Path, ready) -> None:
    with RunLock(out):
        ready.set()
        signal.pause()


@posix
def test_a_killed_holder_leaves_the_folder_free(tmp_path):
    forks = multiprocessing.get_context("fork")
    ready = forks.Event()
    child = forks.Process(target=hold_and_wait, args=(tmp_path, ready))
    child.start()
    assert ready.wait(30)
    with pytest.raises(OutputError, match="another run is writing here; wait for it"):
        RunLock(tmp_path)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    RunLock(tmp_path).remove()
    assert list(tmp_path.iterdir()) == []
