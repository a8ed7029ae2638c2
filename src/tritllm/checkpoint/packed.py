"""Reading a packed checkpoint, by the format's rules for readers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tritllm.checkpoint.agreement import check_headers
from tritllm.checkpoint.pieces import pieces_of
from tritllm.codec import TritTensor
from tritllm.errors import FormatError
from tritllm.format.json_object import no_collection, shortened
from tritllm.format.layout import CODEBOOK, SCALE
from tritllm.format.names import CONFIG, INDEX, SINGLE
from tritllm.format.quantization_config import (
    METHOD,
    check_quantization_config,
    is_packed_config,
    uniform_or_map,
)
from tritllm.format.safetensors_header import Header, TensorEntry, read_header
from tritllm.format.slices import MatrixSlice
from tritllm.storage.model_files import LocalFiles
from tritllm.storage.model_json import read_json, read_manifest

Bytes = bytes | bytearray


class PackedCheckpoint:
    """A packed folder whose manifest, headers, index and shapes agree; tensors are read on demand.

    Opening compares the SHA-256 of the manifest and of every shard's header, so that each tensor is
    where its writer put it; the tensors' own bytes are not hashed (`verify` and `dequantize` do).

    Attributes:
        manifest: tritllm.json. config: config.json. files: the folder; sizes: of its files.
        headers: of each shard by file name.
        quantized, kept: names of the quantized linears' X.weight and of the other tensors.
        sliced: by source tensor that holds several matrices, its pieces in order, each the names
            of its matrices' X.weight.

    Raises FormatError on construction, naming file and tensor, where something is missing, extra,
    newer, or of a shape that does not follow from N, K and d.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.files = LocalFiles(self.folder, name=str(self.folder), fault=FormatError)
        self.sizes = self.files.sizes()
        with no_collection():
            self._open()

    def _open(self) -> None:
        self.manifest = read_manifest(self.files, self.sizes)
        self.config = self._read_config()
        self.headers = self._read_headers()
        self._entries = check_headers(self.manifest, self.headers, str(self.folder))
        self._records: dict[str, Any] = self.manifest["tensors"]
        self.quantized = [name for name, record in self._records.items() if "depth" in record]
        self.kept = [name for name, record in self._records.items() if "kept" in record]
        self.sliced = pieces_of(self._records)
        self._check_index()

    def entry(self, name: str) -> TensorEntry:
        """Where a stored tensor lies in its file."""
        return self._entries[name]

    def where(self, name: str) -> str:
        """File and tensor, for messages."""
        return f"{self.folder / self._records[name]['file']}: tensor {name}"

    def read(self, name: str) -> bytes:
        """Bytes of one stored tensor."""
        return self.read_range(name, 0, self.entry(name).nbytes)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes of a stored tensor from `offset` within it."""
        return self.files.read(self._records[name]["file"], self.entry(name).begin + offset, length)

    def tensor(self, name: str, planes: int | None = None) -> TritTensor:
        """A quantized matrix by the name of its X.weight; only the top `planes` planes are read.

        A tensor read at r planes has depth r. Its bytes are not compared with the manifest's
        SHA-256, which covers planes that may not be read; `verify` does that.

        Raises FormatError for a broken codebook, KeyError for a name that is not quantized.
        """
        depth = self._records[name]["depth"]
        keep = depth if planes is None else planes
        if not 1 <= keep <= depth:
            raise FormatError(f"{self.folder}: tensor {name} has {depth} planes, not {keep}")
        return self.tensor_of_bytes(
            name,
            self.read_range(name, 0, self.entry(name).nbytes // depth * keep),
            self.read(name + SCALE),
            self.read(name + CODEBOOK),
            keep,
        )

    def tensor_of_bytes(
        self, name: str, planes: Bytes, scale: Bytes, codebook: Bytes, keep: int
    ) -> TritTensor:
        """The matrix X.weight = `name` at its top `keep` planes, from bytes that were read.

        planes: of the first `keep` planes at least. Raises FormatError for a broken codebook.
        """
        depth, rows, row_bytes = self.entry(name).shape
        weight = np.frombuffer(planes, np.uint8, keep * rows * row_bytes)
        try:
            return TritTensor(
                weight.reshape(keep, rows, row_bytes),
                np.frombuffer(scale, np.uint8).reshape(rows, -1),
                np.frombuffer(codebook, "<f4").astype(np.float32).reshape(depth, -1)[:keep],
                self._records[name]["in_features"],
            )
        except ValueError as error:
            raise FormatError(f"{self.where(name)}: {error}") from None

    def is_transposed(self, name: str) -> bool:
        """Whether the dequantized model stores this matrix as [in_features, out_features]."""
        return bool(self._records[name]["transposed"])

    def slice_of(self, name: str) -> MatrixSlice | None:
        """Which part of a source tensor a matrix is; None where it is all of it."""
        record = self._records[name].get("slice_of")
        return None if record is None else MatrixSlice.of_record(record)

    def _read_config(self) -> dict[str, Any]:
        """Software that reads config.json alone must not be told another story."""
        where = str(self.folder / CONFIG)
        config = read_json(self.files, self.sizes, CONFIG)
        claimed = config.get("quantization_config")
        if not isinstance(claimed, dict):
            raise FormatError(f"{where}: no quantization_config")
        if not is_packed_config(config):
            method = shortened(repr(claimed.get("quant_method")))
            raise FormatError(f"{where}: quant_method is {method}, expected {METHOD!r}")
        check_quantization_config(claimed, where)
        depths = {
            name.removesuffix(".weight"): record["depth"]
            for name, record in self.manifest["tensors"].items()
            if "depth" in record
        }
        expected = {key: self.manifest[key] for key in ("format_version", "codec", "group_size")}
        for key, value in (expected | {"depth": uniform_or_map(depths)}).items():
            if claimed.get(key) != value:
                raise FormatError(f"{where}: quantization_config's {key} is not the manifest's")
        return config

    def _read_headers(self) -> dict[str, Header]:
        headers = {}
        for name in self.manifest["headers"]:
            if name not in self.sizes:
                raise FormatError(f"{self.folder / name}: missing, or not a regular file")
            headers[name] = read_header(
                partial(self.files.read, name), self.sizes[name], str(self.folder / name)
            )
        for name in self.sizes:
            if name.endswith(".safetensors") and name not in headers:
                raise FormatError(f"{self.folder / name}: not in the manifest")
        return headers

    def _check_index(self) -> None:
        if INDEX not in self.sizes and set(self.headers) == {SINGLE}:
            return
        where = self.folder / INDEX
        weight_map = read_json(self.files, self.sizes, INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise FormatError(f"{where}: not a safetensors index")
        if len(weight_map) != len(self._records) or any(
            weight_map.get(name) != record["file"] for name, record in self._records.items()
        ):
            raise FormatError(f"{where}: does not name the tensors that are here")
