"""The folder of a run within the output, and the lock that lets one run at a time write there."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from tritllm.errors import OutputError
from tritllm.storage.output_errors import output_errors

FOLDER = ".tritllm-run"


class RunLock:
    """Holds OUT/.tritllm-run/lock, and with it the right to write into OUT; a context manager.

    The folder goes when a run has ended, while other processes may be about to lock the file in it.
    So it is removed by its holder alone, and whoever gets the lock makes sure that the file he
    locked is still the one at its path: an unlinked file can be locked, too, beside the new one.

    Raises OutputError at once where another run holds it.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out / FOLDER
        self._path = self.folder / "lock"
        with output_errors(out):
            while not self._acquire(out):
                pass

    def _acquire(self, out: Path) -> bool:
        """False where the file was removed meanwhile by a run that has ended."""
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            pinned = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the folder went
            return False
        try:  # while the file is open its number is not given to another
            lock = FileLock(self._path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                if self._is_at_path(pinned):
                    raise OutputError(f"{out}: another run is writing here; wait for it") from None
                return False
            except FileNotFoundError:
                return False
            if not self._is_at_path(pinned):
                lock.release()
                return False
        finally:
            os.close(pinned)
        self._lock = lock
        return True

    def _is_at_path(self, descriptor: int) -> bool:
        """Whether an open file is that of the path: then it has been so since it was opened."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let others in; the folder stays for a run that goes on. Twice is once."""
        self._lock.release()

    def remove(self) -> None:
        """Remove the empty folder and release: the run has ended."""
        if os.name == "nt":  # where an open file cannot be removed, nor a removed one be locked
            self._lock.release()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
            self.folder.rmdir()  # not empty where another has just begun
        self._lock.release()

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
