"""Files of a model where they lie: a local folder, or a Hub repository read in place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from tritllm.errors import SourceError, TritError
from tritllm.extras import require
from tritllm.storage.direct_read import LEAST, read_directly
from tritllm.storage.hub_errors import hub_says
from tritllm.storage.hub_files import HubFiles


class ModelFiles(Protocol):
    """What the quantizer needs of a folder of files; names are relative, with forward slashes."""

    name: str
    revision: str | None

    def sizes(self) -> dict[str, int]:
        """Every file and its size in bytes."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Exactly these bytes. Raises SourceError if the file has fewer."""

    def read_into(self, name: str, offset: int, data: memoryview) -> None:
        """Fill `data` with the bytes from `offset`. Raises as `read`."""

    def stamp(self, name: str) -> str:
        """A string that changes when the file does."""


_NEXT_BYTES = 32 << 20  # which the system is told to fetch already


class LocalFiles:
    """A folder on disk. `name` and `revision` tell where a downloaded folder came from.

    fault: the error that a file which cannot be read raises; FormatError for packed folders.
    """

    def __init__(
        self,
        folder: Path,
        name: str | None = None,
        revision: str | None = None,
        fault: type[TritError] = SourceError,
    ) -> None:
        self.folder = folder
        self._fault = fault
        self.name = name or str(folder.resolve())
        self.revision = revision

    def __getstate__(self) -> dict[str, Any]:
        """With the whole path: another process may work in another folder."""
        return {**self.__dict__, "folder": self.folder.absolute()}

    def sizes(self) -> dict[str, int]:
        """As `ModelFiles.sizes`."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            relative = path.relative_to(self.folder)
            if path.is_file() and not {".git", ".cache"} & set(relative.parts):
                found[relative.as_posix()] = path.stat().st_size
        return found

    def read(self, name: str, offset: int, length: int) -> bytes:
        """As `ModelFiles.read`."""
        path = self.folder / name
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                data = file.read(length)
        except OSError as error:
            raise self._fault(f"{path}: {error.strerror}") from None
        _check_length(len(data), length, str(path), offset, self._fault)
        return data

    def read_into(self, name: str, offset: int, data: memoryview) -> None:
        """As `ModelFiles.read_into`."""
        path = self.folder / name
        start, stop = read_directly(path, offset, data)
        if start:
            self._read_part(path, offset, data[:start])
        self._read_part(path, offset + stop, data[stop:])

    def _read_part(self, path: Path, offset: int, data: memoryview) -> None:
        done = 0
        try:
            with open(path, "rb", buffering=0) as file:
                if len(data) >= LEAST and hasattr(os, "posix_fadvise"):  # from front to back
                    end = offset + len(data)
                    os.posix_fadvise(file.fileno(), end, _NEXT_BYTES, os.POSIX_FADV_WILLNEED)
                file.seek(offset)
                while done < len(data) and (more := file.readinto(data[done:])):
                    done += more  # one call reads at most 2 GiB
        except OSError as error:
            raise self._fault(f"{path}: {error.strerror}") from None
        _check_length(done, len(data), str(path), offset, self._fault)

    def stamp(self, name: str) -> str:
        """As `ModelFiles.stamp`."""
        return str((self.folder / name).stat().st_mtime_ns)


def _check_length(
    got: int, length: int, where: str, offset: int, fault: type[TritError] = SourceError
) -> None:
    if got != length:
        raise fault(f"{where}: got {got} of {length} bytes at {offset}; truncated")


WEIGHT_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".tflite")


def open_files(model: str, revision: str | None = None, stream: bool = False) -> ModelFiles:
    """Open a local folder, or a Hub id: downloaded to the Hub's cache, or read in place.

    Raises SourceError when there is neither, or the Hub cannot be reached; TritError where the
    Hub's client library is not installed.
    """
    if os.path.isdir(model):
        if revision or stream:
            raise SourceError(f"{model} is a local folder: --revision and --stream are for Hub ids")
        _refuse_irregular(Path(model))
        return LocalFiles(Path(model))
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise SourceError(f"{model}: no such folder, and not a Hub id (owner/name)")

    require("reading from the Hub", "quantize", "huggingface_hub")
    from huggingface_hub import snapshot_download

    try:
        if stream:
            return HubFiles(model, revision)
        unwanted = [f"*{suffix}" for suffix in WEIGHT_SUFFIXES]
        folder = Path(snapshot_download(model, revision=revision, ignore_patterns=unwanted))
    except Exception as error:  # whatever the network or the client library raises
        raise SourceError(
            f"{model}: not a local folder, and the Hub says: {hub_says(error)}"
        ) from None
    return LocalFiles(folder, name=model, revision=folder.name)


def _refuse_irregular(folder: Path) -> None:
    """Raise SourceError for a device, a pipe or a link to nothing: it cannot be read as a file."""
    for path in sorted(folder.rglob("*")):
        if (
            path.is_file()
            or path.is_dir()
            or {".git", ".cache"} & set(path.relative_to(folder).parts)
        ):
            continue
        what = "not a regular file" if path.exists() else "a link to a file that is not there"
        raise SourceError(f"{path}: {what}; remove it or fetch it again")
