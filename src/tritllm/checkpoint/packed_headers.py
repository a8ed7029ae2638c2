"""Which packed matrices a checkpoint's files hold, read from their headers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tritllm.checkpoint.agreement import check_headers
from tritllm.errors import FormatError
from tritllm.format.dtypes import NUMPY_OF_SAFETENSORS
from tritllm.format.layout import CODEBOOK, SCALE, check, parts_of
from tritllm.format.names import MANIFEST
from tritllm.format.safetensors_header import Header, TensorEntry, read_header
from tritllm.storage.model_files import LocalFiles, ModelFiles
from tritllm.storage.model_json import read_manifest


@dataclass(frozen=True)
class StoredMatrix:
    """The name and file of an X.weight, and its shape [d, N, ceil(K/5)].

    in_features: K, where a manifest told it; the shapes alone tell it only to a byte. transposed:
    whether it told that the float model stores the weight as [in_features, out_features], alone.
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
            _check_manifest(folder, here)
    return _matrices(entries, file_of)


def stored_in(files: ModelFiles) -> dict[str, StoredMatrix]:
    """The same of a packed folder or Hub repository, read where it lies.

    Raises FormatError as `stored_matrices`, and without a manifest: then the folder is not whole.
    """
    sizes = files.sizes()
    manifest = read_manifest(files, sizes)
    headers = {}
    for name in manifest["headers"]:
        where = f"{files.name}/{name}"
        if name not in sizes:
            raise FormatError(f"{where}: missing, or not a regular file")
        headers[name] = read_header(partial(files.read, name), sizes[name], where)
    check_headers(manifest, headers, files.name)
    entries, file_of = _entries({f"{files.name}/{name}": h for name, h in headers.items()})
    matrices = _matrices(entries, file_of)
    for name, matrix in matrices.items():
        record = manifest["tensors"][name]
        transposed = record["transposed"] and "slice_of" not in record
        matrices[name] = replace(matrix, in_features=record["in_features"], transposed=transposed)
    return matrices


def fused_floats(files: Sequence[str]) -> list[str]:
    """Names of the 3-D floats in these files, among which are experts that are not packed.

    Raises FormatError for a file that is no safetensors.
    """
    return [
        entry.name
        for file in files
        for entry in _header(file).entries.values()
        if len(entry.shape) == 3 and entry.dtype in NUMPY_OF_SAFETENSORS
    ]


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


def _check_manifest(folder: Path, headers: Mapping[str, Header]) -> None:
    """Raise FormatError where the folder's manifest does not tell what its shards' headers tell.

    headers: by the name of their file.
    """
    files = LocalFiles(folder, name=str(folder), fault=FormatError)
    manifest = read_manifest(files, files.sizes())
    for name in manifest["headers"]:
        if name not in headers:
            raise FormatError(f"{folder / name}: in the manifest, but not among the model's files")
    check_headers(manifest, headers, str(folder))
