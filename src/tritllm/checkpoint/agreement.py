"""Manifest and headers of a packed folder must tell the same; both readers ask here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from tritllm.errors import FormatError
from tritllm.format.layout import check, part_names, parts_of
from tritllm.format.safetensors_header import Header, TensorEntry


def check_headers(
    manifest: Mapping[str, Any], headers: Mapping[str, Header], folder: str
) -> dict[str, TensorEntry]:
    """Hold the shards' headers against a manifest that follows its schema.

    headers: by file name, every shard that the manifest names. folder: for messages.

    Returns every tensor's entry by name. Raises FormatError, naming file and tensor, where a header
    has another SHA-256, a tensor is missing, extra, in another file or of another dtype or shape,
    or the three tensors of a matrix do not follow from N, K and d.
    """
    records = manifest["tensors"]
    entries: dict[str, TensorEntry] = {}
    for file, header in headers.items():
        for name, entry in header.entries.items():
            record = records.get(name)
            if record is None or record["file"] != file:
                raise FormatError(f"{folder}/{file}: tensor {name} is not in the manifest")
            if entry.dtype != record["dtype"] or list(entry.shape) != record["shape"]:
                raise FormatError(
                    f"{folder}/{file}: tensor {name} is {entry.dtype} {list(entry.shape)}, "
                    f"the manifest says {record['dtype']} {record['shape']}"
                )
        entries |= header.entries
    if len(entries) != len(records):
        name = next(name for name in records if name not in entries)
        raise FormatError(f"{folder}/{records[name]['file']}: tensor {name} is missing")
    _check_matrices(records, entries, folder)
    for file, header in headers.items():
        if hashlib.sha256(header.raw).hexdigest() != manifest["headers"].get(file):
            raise FormatError(
                f"{folder}/{file}: SHA-256 of the header differs from the manifest; "
                "the file was changed"
            )
    return entries


def _check_matrices(
    records: Mapping[str, Any], entries: Mapping[str, TensorEntry], folder: str
) -> None:
    of_no_matrix = {name for name, record in records.items() if "part_of" in record}
    right: set[tuple[object, ...]] = set()  # most matrices of a model have one of a few layouts
    for name, record in records.items():
        if "depth" not in record:
            continue
        where = f"{folder}/{record['file']}"
        parts = parts_of(entries, name, where)
        layout = (record["depth"], record["in_features"], *((p.dtype, p.shape) for p in parts))
        if layout not in right:
            check(parts, parts[0].shape[1], record["in_features"], record["depth"], where)
            right.add(layout)
        for part in part_names(name)[1:]:
            if records[part].get("part_of") != name:
                raise FormatError(f"{where}: tensor {part} is not a part of {name} in the manifest")
            of_no_matrix.discard(part)
    for name in of_no_matrix:
        raise FormatError(f"{folder}: tensor {name} belongs to no quantized weight")
