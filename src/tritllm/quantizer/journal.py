"""What a run has finished, so that it can be killed at any moment and continued."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tritllm.errors import OutputError
from tritllm.quantizer.fingerprint import differences
from tritllm.quantizer.run_lock import FOLDER
from tritllm.storage.output_errors import output_errors
from tritllm.storage.shard_writer import sync_folder

NAME = "journal.jsonl"


def read_journal(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The fingerprint and the records of a journal, and how many bytes they take: what follows
    the last newline is torn, from a kill while it was written, and left out.

    Raises ValueError for anything else than a journal, OSError where it cannot be read.
    """
    kept = path.read_bytes().split(b"\n")[:-1]
    try:
        records = [json.loads(line) for line in kept]
        if any("shards" not in record for record in records[:1]) or any(
            "shard" not in record for record in records[1:]
        ):
            raise ValueError
    except (TypeError, RecursionError):
        raise ValueError from None
    return records, sum(len(line) + 1 for line in kept)


def is_finished(records: list[dict[str, Any]]) -> bool:
    """Whether the records of one shard tell of all of it: the last has the shard's own hash."""
    return bool(records) and "shard_sha256" in records[-1]


class Journal:
    """OUT/.tritllm-run/journal.jsonl: the run's fingerprint, then one record a finished step.

    A record is added only when the bytes it speaks of are on the disk. A torn last line is dropped.
    Use as a context manager, while holding the `RunLock`.
    """

    def __init__(self, out: Path, fingerprint: dict[str, Any]) -> None:
        self.path = out / FOLDER / NAME
        self.records: list[dict[str, Any]] = []
        with output_errors(self.path):
            self._file = open(  # noqa: SIM115
                self.path, "r+b" if self.path.exists() else "w+b", buffering=0
            )
        try:
            self._load(out, fingerprint)
        except BaseException:
            self._file.close()
            raise

    def _load(self, out: Path, fingerprint: dict[str, Any]) -> None:
        try:
            records, nbytes = read_journal(self.path)
        except ValueError:
            raise OutputError(f"{self.path}: damaged; delete {out} and start again") from None
        if records:
            differing = differences(records[0], fingerprint)
            if differing:
                raise OutputError(
                    f"{out}: an unfinished run with other settings is here ({differing}); "
                    f"finish it as it was begun, or delete {out} and start again"
                )
        with output_errors(self.path):
            self._file.truncate(nbytes)
            self._file.seek(0, os.SEEK_END)
            if not records:
                self._append([fingerprint])
                sync_folder(self.path.parent)
        self.records = records[1:]

    def of_shard(self, shard: str) -> list[dict[str, Any]]:
        """The records of one shard."""
        return [record for record in self.records if record["shard"] == shard]

    def add(self, records: list[dict[str, Any]]) -> None:
        """Append records durably."""
        with output_errors(self.path):
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
        with output_errors(self.path):
            self.path.unlink()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
