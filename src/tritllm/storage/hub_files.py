"""A Hub repository read in place by byte ranges; nothing is stored."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

from tritllm.errors import SourceError
from tritllm.storage.hub_errors import hub_says

ATTEMPTS = 4  # for one range; the client's own, after a timeout or status 5xx, come on top
_FIRST_WAIT_SECONDS = 1.0  # doubled after each attempt


class HubFiles:
    """The files of a repository at one commit, as `ModelFiles`.

    The file read last stays open, so that a shard is looked up once. A range whose connection
    breaks, or that comes back short, is asked for again, a few times; ranges read before are kept
    by the caller. Threads take turns.
    """

    def __init__(self, repository: str, revision: str | None) -> None:
        from huggingface_hub import HfApi

        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
        self.name = repository
        self.revision = info.sha
        self._sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        self._begin()

    def _begin(self) -> None:
        self._turn = threading.Lock()
        self._open_name = ""
        self._open_file: _RangeReader | None = None

    def sizes(self) -> dict[str, int]:
        """As `ModelFiles.sizes`."""
        return dict(self._sizes)

    def read(self, name: str, offset: int, length: int) -> bytes:
        """As `ModelFiles.read`."""
        path = f"{self.name}/{name}"
        if not length:
            return b""
        with self._turn:
            for attempt in range(ATTEMPTS):
                if attempt:
                    time.sleep(_FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
                try:
                    data = self._file(name).read_range(offset, length)
                except Exception as error:  # whatever the network or the client library raises
                    self._close()
                    fault = SourceError(f"{path}: {hub_says(error)}")
                    if not _is_passing(error):
                        raise fault from None
                    continue
                if len(data) == length:
                    return data
                self._close()
                fault = SourceError(
                    f"{path}: got {len(data)} of {length} bytes at {offset}; truncated"
                )
        raise fault

    def read_into(self, name: str, offset: int, data: memoryview) -> None:
        """As `ModelFiles.read_into`."""
        data[:] = self.read(name, offset, len(data))

    def stamp(self, name: str) -> str:
        """As `ModelFiles.stamp`."""
        return self.revision or ""

    def _file(self, name: str) -> _RangeReader:
        if self._open_file is None or self._open_name != name:
            self._close()
            self._open_file = _RangeReader(f"{self.name}/{name}", self.revision)
            self._open_name = name
        return self._open_file

    def _close(self) -> None:
        file, self._open_file = self._open_file, None
        if file is not None:
            with suppress(Exception):
                file.close()

    def __getstate__(self) -> dict[str, Any]:
        """Without lock and connection, which another process makes anew."""
        return {"name": self.name, "revision": self.revision, "_sizes": self._sizes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._begin()


class _RangeReader:
    """An open file of the Hub."""

    def __init__(self, path: str, revision: str | None) -> None:
        from huggingface_hub import HfFileSystem

        self._file = HfFileSystem().open(path, "rb", revision=revision, cache_type="none")

    def read_range(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        data: bytes = self._file.read(length)
        return data

    def close(self) -> None:
        self._file.close()


def _is_passing(error: Exception) -> bool:
    """Whether asking again may help: a connection that broke, a server that was busy."""
    response = getattr(error, "response", None)
    if response is not None:
        status = int(getattr(response, "status_code", 0))
        return status >= 500 or status in (408, 429)
    return not isinstance(error, FileNotFoundError | PermissionError | ValueError | TypeError)
