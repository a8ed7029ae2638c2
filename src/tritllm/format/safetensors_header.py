"""The header of a safetensors file: parsed from raw bytes without trusting them, and built.

The safetensors library reads local files into memory or maps them; the quantizer also needs byte
ranges of remote files and files written tensor by tensor, for which the header alone is enough.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

from tritllm.errors import FormatError
from tritllm.format.json_object import no_collection, parse_unique, shortened

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_MOST = (1 << 63) - 1
MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit


class TensorEntry(NamedTuple):
    """One tensor of a file: dtype as safetensors names it, shape, and its bytes [begin, end)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        return self.end - self.begin

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The parsed head of a safetensors file; entries are in the order of their bytes."""

    raw: bytes
    entries: dict[str, TensorEntry]
    metadata: dict[str, str]

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return max([len(self.raw)] + [entry.end for entry in self.entries.values()])


def read_header(read: Callable[[int, int], bytes], file_size: int, where: str) -> Header:
    """Read and check a header.

    Args:
        read: read(offset, length) -> bytes of the file.
        file_size: in bytes.
        where: the file's name, for error messages.

    Raises FormatError for a file that is truncated, or whose header lies about sizes, overlaps,
    leaves holes, or points outside of the file.
    """
    if file_size < 8:
        raise FormatError(
            f"{where}: {file_size} bytes is too short for safetensors; fetch it again"
        )
    length = int.from_bytes(read(0, 8), "little")
    if length > MAX_HEADER_BYTES or 8 + length > file_size:
        raise FormatError(
            f"{where}: header claims {length} bytes in a file of {file_size}; "
            "truncated or not safetensors, fetch it again"
        )
    raw = read(0, 8 + length)
    with no_collection():
        return _parsed(raw, file_size, where)


def _parsed(raw: bytes, file_size: int, where: str) -> Header:
    try:
        fields = parse_unique(raw[8:].decode())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: header is not valid JSON ({shortened(error)})") from None
    if not isinstance(fields, dict):
        raise FormatError(f"{where}: header is not a JSON object")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"{where}: __metadata__ is not a map of strings")
    rows = _rows(fields, len(raw), where)
    rows.sort(key=itemgetter(3, 4))
    position = len(raw)
    for name, _, _, begin, end in rows:
        if begin != position:
            fault = "overlaps another" if begin < position else "leaves a hole before it"
            raise _fault(where, name, f"{fault} (data_offsets)")
        position = end
    if position != file_size:
        raise FormatError(
            f"{where}: tensors end at byte {position} of {file_size}; "
            "the file is truncated or has bytes appended, fetch it again"
        )
    return Header(raw, _entries(rows), metadata)


def build_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> Header:
    """Lay out (name, dtype, shape) in the given order, contiguous, after an aligned header."""
    fields: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, dtype, shape in tensors:
        end = position + math.prod(shape) * ITEM_BYTES[dtype]
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    raw = len(text).to_bytes(8, "little") + text
    del fields["__metadata__"]
    return Header(raw, _entries(_rows(fields, len(raw), "")), dict(metadata))


_Row = tuple[str, str, tuple[int, ...], int, int]  # what a TensorEntry holds, made in half its time
_entry = partial(tuple.__new__, TensorEntry)


def _rows(fields: Mapping[str, Any], data_start: int, where: str) -> list[_Row]:
    """The tensors of a header, in its order. Raises FormatError for one that cannot be."""
    rows: list[_Row] = []
    nbytes: dict[tuple[str, tuple[int, ...]], int] = {}  # of the dtypes and shapes seen before
    for name, field in fields.items():
        try:
            dtype, shape, (begin, end) = field["dtype"], field["shape"], field["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise _fault(where, name, "lacks dtype, shape or data_offsets") from None
        if not name.isprintable():
            raise _fault(where, f"name {name!r}", "holds a character that cannot be printed")
        sizes = [*shape, begin, end] if type(shape) is list and len(shape) <= 64 else [None]
        for size in sizes:
            if type(size) is not int or not 0 <= size <= _MOST:
                raise _fault(where, name, "has a shape or offset that is no size")
        if type(dtype) is not str or dtype not in ITEM_BYTES:
            raise _fault(where, name, f"has unknown dtype {shortened(repr(dtype))}")
        kind = dtype, tuple(shape)
        expected = nbytes.get(kind)
        if expected is None:
            expected = nbytes[kind] = math.prod(shape) * ITEM_BYTES[dtype]
        if end - begin != expected:
            needs = f"{dtype} {shortened(shape)} needs {shortened(expected)} bytes"
            raise _fault(where, name, f"{needs}, data_offsets give {end - begin}")
        rows.append((name, *kind, data_start + begin, data_start + end))
    return rows


def _entries(rows: list[_Row]) -> dict[str, TensorEntry]:
    return {row[0]: _entry(row) for row in rows}


def _fault(where: str, name: str, what: str) -> FormatError:
    return FormatError(f"{where}: tensor {name} {what}")
