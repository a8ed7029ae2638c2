"""Reading a packed checkpoint, by the format's rules for readers."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tritllm.codec import TritTensor
from tritllm.errors import FormatError
from tritllm.format.layout import CODEBOOK, SCALE, check, part_names, parts_of
from tritllm.format.manifest import METHOD, read_manifest
from tritllm.format.names import CONFIG, INDEX
from tritllm.format.safetensors_header import Header, TensorEntry, read_header
from tritllm.storage.model_files import LocalFiles


class PackedCheckpoint:
    """A packed folder whose manifest, headers, index and shapes agree; tensors are read on demand.

    Attributes:
        manifest: tritllm.json. config: config.json. files: the folder.
        headers: of each shard by file name.
        quantized, kept: names of the quantized linears' X.weight and of the other tensors.

    Raises FormatError on construction, naming file and tensor, where something is missing, extra,
    newer, or of a shape that does not follow from N, K and d.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.files = LocalFiles(self.folder)
        self.config = self._read_config()
        self._records: dict[str, Any] = self.manifest["tensors"]
        self.headers = self._read_headers()
        self.quantized = [name for name, record in self._records.items() if "depth" in record]
        self.kept = [name for name, record in self._records.items() if "kept" in record]
        self._check_tensors()
        self._check_parts()
        self._check_index()

    def entry(self, name: str) -> TensorEntry:
        """Where a stored tensor lies in its file."""
        return self.headers[self._records[name]["file"]].entries[name]

    def read(self, name: str) -> bytes:
        """Bytes of one stored tensor."""
        return self.read_range(name, 0, self.entry(name).nbytes)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes of a stored tensor from `offset` within it."""
        return self.files.read(self._records[name]["file"], self.entry(name).begin + offset, length)

    def tensor(self, name: str, planes: int | None = None) -> TritTensor:
        """A quantized matrix by the name of its X.weight; only the top `planes` planes are read.

        A tensor read at r planes has depth r. Raises FormatError for a broken codebook, KeyError
        for a name that is not quantized.
        """
        record = self._records[name]
        depth = record["depth"]
        keep = depth if planes is None else planes
        if not 1 <= keep <= depth:
            raise FormatError(f"{self.folder}: tensor {name} has {depth} planes, not {keep}")
        entry = self.entry(name)
        rows = entry.shape[1]
        weight = np.frombuffer(self.read_range(name, 0, entry.nbytes // depth * keep), np.uint8)
        scale = np.frombuffer(self.read(name + SCALE), np.uint8)
        codebook = np.frombuffer(self.read(name + CODEBOOK), "<f4").astype(np.float32)
        try:
            return TritTensor(
                weight.reshape(keep, rows, -1),
                scale.reshape(rows, -1),
                codebook.reshape(depth, -1)[:keep],
                record["in_features"],
            )
        except ValueError as error:
            raise FormatError(f"{self.folder / record['file']}: tensor {name}: {error}") from None

    def is_transposed(self, name: str) -> bool:
        """Whether the dequantized model stores this matrix as [in_features, out_features]."""
        return bool(self._records[name]["transposed"])

    def _read_config(self) -> dict[str, Any]:
        path = self.folder / CONFIG
        try:
            config = json.loads(path.read_bytes())
            method = config["quantization_config"]["quant_method"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise FormatError(f"{path}: missing, or has no quantization_config") from None
        if method != METHOD:
            raise FormatError(f"{path}: quant_method is {method!r}, expected {METHOD!r}")
        self._check_config(config["quantization_config"])
        result: dict[str, Any] = config
        return result

    def _check_config(self, claimed: dict[str, Any]) -> None:
        """Software that reads config.json alone must not be told another story."""
        depths = {
            name.removesuffix(".weight"): record["depth"]
            for name, record in self.manifest["tensors"].items()
            if "depth" in record
        }
        uniform = set(depths.values())
        expected = {
            "format_version": self.manifest["format_version"],
            "codec": self.manifest["codec"],
            "group_size": self.manifest["group_size"],
            "depth": uniform.pop() if len(uniform) == 1 else depths,
        }
        for key, value in expected.items():
            if claimed.get(key) != value:
                where = self.folder / CONFIG
                raise FormatError(f"{where}: quantization_config's {key} is not the manifest's")

    def _read_headers(self) -> dict[str, Header]:
        headers = {}
        sizes = self.files.sizes()
        for name in self.manifest["headers"]:
            if name not in sizes:
                raise FormatError(f"{self.folder / name}: missing")
            headers[name] = read_header(
                partial(self.files.read, name), sizes[name], str(self.folder / name)
            )
        for name in sizes:
            if name.endswith(".safetensors") and name not in headers:
                raise FormatError(f"{self.folder / name}: not in the manifest")
        return headers

    def _check_tensors(self) -> None:
        for file, header in self.headers.items():
            for name in header.entries:
                if name not in self._records or self._records[name]["file"] != file:
                    raise FormatError(f"{self.folder / file}: tensor {name} is not in the manifest")
        for name, record in self._records.items():
            shard = self.headers.get(record["file"])
            entry = shard.entries.get(name) if shard else None
            if entry is None:
                raise FormatError(f"{self.folder / record['file']}: tensor {name} is missing")
            if (entry.dtype, list(entry.shape)) != (record["dtype"], record["shape"]):
                raise FormatError(
                    f"{self.folder / record['file']}: tensor {name} is {entry.dtype} "
                    f"{list(entry.shape)}, the manifest says {record['dtype']} {record['shape']}"
                )

    def _check_parts(self) -> None:
        entries = {name: self.entry(name) for name in self._records}
        rest = {name for name, record in self._records.items() if "part_of" in record}
        for name in self.quantized:
            record = self._records[name]
            where = str(self.folder / record["file"])
            parts = parts_of(entries, name, where)
            depth, rows = record["depth"], parts[0].shape[1]
            check(parts, rows, record["in_features"], depth, where)
            rest.difference_update(part_names(name))
        for name in rest:
            raise FormatError(f"{self.folder}: tensor {name} belongs to no quantized weight")

    def _check_index(self) -> None:
        path = self.folder / INDEX
        if not path.exists():
            if set(self.headers) == {"model.safetensors"}:
                return
            raise FormatError(f"{path}: missing")
        try:
            weight_map = json.loads(path.read_bytes())["weight_map"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise FormatError(f"{path}: not a safetensors index") from None
        if weight_map != {name: record["file"] for name, record in self._records.items()}:
            raise FormatError(f"{path}: does not name the tensors that are here")
