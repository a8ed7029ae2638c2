"""Manifest and headers of a packed folder must tell the same; both readers ask here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from tritllm.checkpoint.pieces import check_slices
from tritllm.errors import FormatError
from tritllm.format.layout import CODEBOOK, SCALE, check, part_names, parts_of
from tritllm.format.safetensors_header import Header, TensorEntry

_MISSING: Mapping[str, Any] = {"dtype": None, "shape": ()}  # the layout of no part


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
        for name, dtype, shape, _, _ in header.entries.values():
            record = records.get(name)
            if record is None or record["file"] != file:
                raise FormatError(f"{folder}/{file}: tensor {name} is not in the manifest")
            if dtype != record["dtype"] or list(shape) != record["shape"]:
                raise FormatError(
                    f"{folder}/{file}: tensor {name} is {dtype} {list(shape)}, "
                    f"the manifest says {record['dtype']} {record['shape']}"
                )
        entries |= header.entries
    if len(entries) != len(records):
        name = next(name for name in records if name not in entries)
        raise FormatError(f"{folder}/{records[name]['file']}: tensor {name} is missing")
    _check_matrices(records, entries, folder)
    check_slices(records, folder)
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
    right: set[tuple[object, ...]] = set()  # most matrices of a model have one of a few layouts
    matrices = 0
    for name, record in records.items():
        if "depth" not in record:
            continue
        matrices += 1
        scale = records.get(name + SCALE, _MISSING)
        codebook = records.get(name + CODEBOOK, _MISSING)
        depth, in_features = record["depth"], record["in_features"]
        layout = (
            *(depth, in_features, *record["shape"]),
            *(scale["dtype"], *scale["shape"], codebook["dtype"], *codebook["shape"]),
        )
        if layout not in right:
            where = f"{folder}/{record['file']}"
            parts = parts_of(entries, name, where)
            check(parts, parts[0].shape[1], in_features, depth, where)
            right.add(layout)
        if not scale.get("part_of") == codebook.get("part_of") == name:
            raise FormatError(
                f"{folder}/{record['file']}: tensors {name}{SCALE} and {name}{CODEBOOK} are not "
                f"both parts of {name} in the manifest"
            )
    of_matrices = [name for name, record in records.items() if "part_of" in record]
    if len(of_matrices) != 2 * matrices:
        name = next(name for name in of_matrices if not _is_part(name, records))
        raise FormatError(f"{folder}: tensor {name} belongs to no quantized weight")


def _is_part(name: str, records: Mapping[str, Any]) -> bool:
    owner = records[name]["part_of"]
    return name in part_names(owner)[1:] and "depth" in records.get(owner, {})
