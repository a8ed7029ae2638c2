"""Which packed matrices a checkpoint's files hold, read from their headers alone."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tritllm.errors import FormatError
from tritllm.format.layout import CODEBOOK, SCALE, check, parts_of
from tritllm.format.manifest import FORMAT_VERSION
from tritllm.format.names import MANIFEST
from tritllm.format.safetensors_header import TensorEntry, read_header


@dataclass(frozen=True)
class StoredMatrix:
    """The name and file of an X.weight, and its shape [d, N, ceil(K/5)]."""

    name: str
    file: str
    parts: tuple[TensorEntry, TensorEntry, TensorEntry]

    @property
    def depth(self) -> int:
        """Trit planes in the file."""
        return self.parts[0].shape[0]

    def check(self, out_features: int, in_features: int) -> None:
        """Raise FormatError where a shape does not follow from N, K and d."""
        check(self.parts, out_features, in_features, self.depth, self.file)


def stored_matrices(files: Sequence[str]) -> dict[str, StoredMatrix]:
    """Packed matrices by the name of their X.weight.

    A folder that has its manifest is held against it, too.

    Raises FormatError where a matrix lacks a part, a part its matrix, or a depth is not 1..4.
    """
    entries: dict[str, tuple[TensorEntry, str]] = {}
    for file in files:
        entries |= {entry.name: (entry, file) for entry in _entries(file)}
    for folder in {Path(file).parent for file in files}:
        if (folder / MANIFEST).is_file():
            _check_manifest(folder / MANIFEST, entries)
    found = {}
    tensors = {name: entry for name, (entry, _) in entries.items()}
    for name in [n.removesuffix(CODEBOOK) for n in entries if n.endswith(f".weight{CODEBOOK}")]:
        where = entries[name + CODEBOOK][1]
        found[name] = StoredMatrix(name, where, parts_of(tensors, name, where))
    for name, (entry, where) in entries.items():
        packed = name.endswith(".weight") and entry.dtype == "U8" and len(entry.shape) == 3
        if packed and name not in found:
            raise FormatError(f"{where}: tensor {name}{CODEBOOK} is missing")
        if name.endswith(f".weight{SCALE}") and name.removesuffix(SCALE) not in found:
            raise FormatError(f"{where}: tensor {name} belongs to no packed weight")
    return found


def _entries(file: str) -> list[TensorEntry]:
    with open(file, "rb") as stream:

        def read(offset: int, length: int) -> bytes:
            stream.seek(offset)
            return stream.read(length)

        header = read_header(read, os.fstat(stream.fileno()).st_size, file)
    return list(header.entries.values())


def _check_manifest(path: Path, entries: dict[str, tuple[TensorEntry, str]]) -> None:
    """Raise FormatError where the manifest is newer or its tensors are not those of the files.

    `tritllm verify` checks all of it; here, what the headers tell must agree.
    """
    try:
        manifest = json.loads(path.read_bytes())
        version = manifest["format_version"]
        tensors = {
            name: (record["dtype"], tuple(record["shape"]))
            for name, record in manifest["tensors"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: not a manifest ({error!r})") from None
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise FormatError(
            f"{path}: format version {version} is newer than {FORMAT_VERSION}; upgrade tritllm"
        )
    for name, (entry, file) in entries.items():
        if name not in tensors:
            raise FormatError(f"{file}: tensor {name} is not in the manifest")
        if (entry.dtype, entry.shape) != tensors[name]:
            dtype, shape = tensors[name]
            raise FormatError(
                f"{file}: tensor {name} is {entry.dtype} {list(entry.shape)}, "
                f"the manifest says {dtype} {list(shape)}"
            )
    for name in tensors:
        if name not in entries:
            raise FormatError(f"{path}: tensor {name} is in none of the files")
