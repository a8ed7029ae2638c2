"""A safetensors file written tensor by tensor, in any order, and picked up again after a crash."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tritllm.errors import OutputError
from tritllm.format.safetensors_header import Header
from tritllm.storage.output_errors import output_errors


class ShardWriter:
    """Writes into `path`, whose size and header are known from the start: a `TensorSink`.

    The file takes its full size at once, so a full disk shows early. An existing file of the right
    size and header is continued; anything else is begun anew, or refused if `resume` says that
    finished tensors must be in it.
    """

    def __init__(self, path: Path, header: Header, resume: bool = False) -> None:
        self.path = path
        self.header = header
        with output_errors(path):
            self._file = open(path, "r+b" if path.exists() else "w+b", buffering=0)  # noqa: SIM115
        try:
            with output_errors(path):
                self._begin(header.file_bytes, resume)
        except BaseException:
            self._file.close()
            raise

    def _begin(self, size: int, resume: bool) -> None:
        raw = self.header.raw
        if self._file.read(len(raw)) == raw and os.fstat(self._file.fileno()).st_size == size:
            return
        if resume:
            raise OutputError(
                f"{self.path}: gone or changed since the run began; "
                "delete the output and start again"
            )
        self._file.truncate(0)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._file.fileno(), 0, size)
        else:
            self._file.truncate(size)
        self._write_at(0, raw)

    @property
    def where(self) -> str:
        """As `TensorSink.where`."""
        return self.path.name

    def write(self, name: str, offset: int, data: bytes | memoryview) -> None:
        """As `TensorSink.write`."""
        entry = self.header.entries[name]
        if offset + len(data) > entry.nbytes:
            raise ValueError(f"{name}: {offset + len(data)} bytes for a tensor of {entry.nbytes}")
        with output_errors(self.path):
            self._write_at(entry.begin + offset, data)

    def sync(self) -> None:
        """Return when everything written is on the disk."""
        with output_errors(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; what is written stays."""
        self._file.close()

    def _write_at(self, position: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        self._file.seek(position)
        while view:
            view = view[self._file.write(view) :]


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write; behind it `path` is durably what was written. An error leaves it as it was.

    Raises OutputError where the system cannot write it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with output_errors(path):
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write a small file so that it is either absent, as before, or whole."""
    with replacing(path) as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Make renames within `folder` durable, where the system can."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
