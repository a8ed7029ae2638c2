"""Which packed matrices a checkpoint's files hold, read from their headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tritllm.checkpoint.agreement import check_headers
from tritllm.errors import FormatError
from tritllm.format.json_object import shortened
from tritllm.format.layout import CODEBOOK, SCALE, check, parts_of
from tritllm.format.names import INDEX, MANIFEST
from tritllm.format.safetensors_header import Header, TensorEntry, read_header
from tritllm.storage.model_files import LocalFiles, ModelFiles
from tritllm.storage.model_json import read_json, read_manifest


@dataclass(frozen=True)
class StoredMatrix:
    """The name and file of an X.weight, and its shape [d, N, ceil(K/5)].

    in_features: K, where a manifest told it; the shapes alone tell it only to a byte. transposed:
    whether it told that the float model stores the weight as [in_features, out_features].
    """

    name: str
    file: str
    parts: tuple[TensorEntry, TensorEntry, TensorEntry]
    in_features: int | None = None
    transposed: bool = False

    @property
    def depth(self) -> int:
        """Trit planes in the file."""
        return self.parts[0].shape[0]

    def check(self, out_features: int, in_features: int) -> None:
        """Raise FormatError where a shape does not follow from N, K and d."""
        check(self.parts, out_features, in_features, self.depth, self.file)


def stored_matrices(files: Sequence[str]) -> dict[str, StoredMatrix]:
    """Packed matrices by the name of their X.weight.

    files: paths of the shards. A folder that has its manifest is held against it: every header's
    SHA-256, so that no tensor can stand in another's place, and every name, dtype and shape. Bytes
    are compared by `check_hashes`.

    Raises FormatError where they differ, a matrix lacks a part, a part its matrix, or a depth is
    not 1..4.
    """
    headers = {file: _header(file) for file in files}
    entries, file_of = _entries(headers)
    for folder in {Path(file).parent for file in files}:
        if (folder / MANIFEST).exists():
            here = {
                Path(f).name: header for f, header in headers.items() if Path(f).parent == folder
            }
            _check_manifest(LocalFiles(folder, name=str(folder), fault=FormatError), here)
    return _matrices(entries, file_of)


def stored_in(files: ModelFiles) -> dict[str, StoredMatrix]:
    """The same of every shard of a model where it lies: a folder, or a Hub repository in place.

    Raises FormatError as `stored_matrices`, and where there is no shard or the index names one that
    is missing.
    """
    sizes = files.sizes()
    names = [name for name in sizes if name.endswith(".safetensors") and "/" not in name]
    if not names:
        raise FormatError(f"{files.name}: no safetensors files there; a packed model has no others")
    if INDEX in sizes:
        weight_map = read_json(files, sizes, INDEX).get("weight_map")
        for tensor, name in weight_map.items() if isinstance(weight_map, dict) else ():
            if name not in names:
                raise FormatError(
                    f"{files.name}/{shortened(name)}: missing; {INDEX} says that tensor "
                    f"{shortened(tensor)} is there; fetch the folder again"
                )
    headers = {}
    for name in names:
        where = f"{files.name}/{name}"
        headers[name] = read_header(partial(files.read, name), sizes[name], where)
    entries, file_of = _entries({f"{files.name}/{name}": h for name, h in headers.items()})
    records = _check_manifest(files, headers) if MANIFEST in sizes else {}
    matrices = _matrices(entries, file_of)
    for name, matrix in matrices.items():
        if name in records:
            told = {key: records[name][key] for key in ("in_features", "transposed")}
            matrices[name] = replace(matrix, **told)
    return matrices


def _header(file: str) -> Header:
    path = Path(file)
    if not path.is_file():  # a pipe or device would be waited for
        raise FormatError(f"{file}: missing, or not a regular file")
    files = LocalFiles(path.parent, fault=FormatError)
    return read_header(partial(files.read, path.name), path.stat().st_size, file)


def _entries(headers: Mapping[str, Header]) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Every tensor's entry, and the file it is in."""
    entries: dict[str, TensorEntry] = {}
    file_of: dict[str, str] = {}
    for file, header in headers.items():
        for name in header.entries:
            if name in file_of:
                raise FormatError(f"{file}: tensor {name} is in {file_of[name]}, too")
            file_of[name] = file
        entries |= header.entries
    return entries, file_of


def _matrices(
    entries: Mapping[str, TensorEntry], file_of: Mapping[str, str]
) -> dict[str, StoredMatrix]:
    found = {}
    for name in [n.removesuffix(CODEBOOK) for n in entries if n.endswith(f".weight{CODEBOOK}")]:
        where = file_of[name + CODEBOOK]
        found[name] = StoredMatrix(name, where, parts_of(entries, name, where))
    for name, entry in entries.items():
        packed = name.endswith(".weight") and entry.dtype == "U8" and len(entry.shape) == 3
        if packed and name not in found:
            raise FormatError(f"{file_of[name]}: tensor {name}{CODEBOOK} is missing")
        if name.endswith(f".weight{SCALE}") and name.removesuffix(SCALE) not in found:
            raise FormatError(f"{file_of[name]}: tensor {name} belongs to no packed weight")
    return found


def _check_manifest(files: ModelFiles, headers: Mapping[str, Header]) -> Mapping[str, Any]:
    """The manifest's record of every tensor.

    headers: of all shards, by the name of their file. Raises FormatError where the manifest does
    not tell what they tell.
    """
    manifest = read_manifest(files, files.sizes())
    for name in manifest["headers"]:
        if name not in headers:
            raise FormatError(
                f"{files.name}/{name}: in the manifest, but not among the model's files"
            )
    check_headers(manifest, headers, files.name)
    records: Mapping[str, Any] = manifest["tensors"]
    return records
