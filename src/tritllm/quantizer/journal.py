"""What a run has finished, so that it can be killed at any moment and continued."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tritllm.errors import OutputError
from tritllm.storage.shard_writer import output_errors, sync_folder

FOLDER = ".tritllm-run"


class Journal:
    """OUT/.tritllm-run/journal.jsonl: the run's fingerprint, then one record a finished step.

    A record is added only when the bytes it speaks of are on the disk. A torn last line, from a
    kill while it was written, is dropped. Use as a context manager; holds a lock on the folder.
    """

    def __init__(self, out: Path, fingerprint: dict[str, Any]) -> None:
        self.folder = out / FOLDER
        self.records: list[dict[str, Any]] = []
        with output_errors(out):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder / "lock")
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise OutputError(f"{out}: another run is writing here; wait for it") from None
        try:
            path = self.folder / "journal.jsonl"
            with output_errors(path):
                self._file = open(path, "r+b" if path.exists() else "w+b", buffering=0)  # noqa: SIM115
            try:
                self._load(path, out, fingerprint)
            except BaseException:
                self._file.close()
                raise
        except BaseException:
            self._lock.release()
            raise

    def _load(self, path: Path, out: Path, fingerprint: dict[str, Any]) -> None:
        lines = path.read_bytes().split(b"\n")
        kept = lines[:-1]  # what follows the last newline is torn or empty
        try:
            records = [json.loads(line) for line in kept]
            if any("shards" not in record for record in records[:1]) or any(
                "shard" not in record for record in records[1:]
            ):
                raise ValueError
        except (ValueError, TypeError):
            raise OutputError(f"{path}: damaged; delete {out} and start again") from None
        if records:
            differing = differences(records[0], fingerprint)
            if differing:
                raise OutputError(
                    f"{out}: an unfinished run with other settings is here ({differing}); "
                    f"finish it as it was begun, or delete {out} and start again"
                )
        with output_errors(path):
            self._file.truncate(sum(len(line) + 1 for line in kept))
            self._file.seek(0, os.SEEK_END)
            if not records:
                self._append([fingerprint])
                sync_folder(self.folder)
        self.records = records[1:]

    def add(self, records: list[dict[str, Any]]) -> None:
        """Append records durably."""
        with output_errors(self.folder / "journal.jsonl"):
            self._append(records)
        self.records += records

    def _append(self, records: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
        data = memoryview(text.encode())
        while data:  # a disk that is nearly full takes a part
            data = data[self._file.write(data) :]
        os.fsync(self._file.fileno())

    def remove(self) -> None:
        """The run is complete: nothing is left to continue."""
        self._file.close()
        (self.folder / "journal.jsonl").unlink()
        self._lock.release()
        remove_empty(self.folder)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._lock.release()


def remove_empty(folder: Path) -> None:
    """Remove the folder of a run that has ended, unless another has begun in it."""
    with suppress(OSError):
        (folder / "lock").unlink(missing_ok=True)
        folder.rmdir()


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> str:
    """'key: old -> new' for what differs between two fingerprints; empty if nothing does."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := differences(old, new, f"{prefix}{key}."):
                found.append(inner)
        elif old != new:
            found.append(f"{prefix}{key}: {old} -> {new}")
    return "; ".join(found)
