"""The header of a safetensors file: parsed from raw bytes without trusting them, and built.

The safetensors library reads local files into memory or maps them; the quantizer also needs byte
ranges of remote files and files written tensor by tensor, for which the header alone is enough.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from tritllm.errors import FormatError
from tritllm.format.json_object import no_collection, shortened, unique_names

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
    try:
        with no_collection():
            fields = json.loads(raw[8:], object_pairs_hook=unique_names)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: header is not valid JSON ({shortened(error)})") from None
    if not isinstance(fields, dict):
        raise FormatError(f"{where}: header is not a JSON object")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"{where}: __metadata__ is not a map of strings")
    entries = [_entry(name, field, 8 + length, where) for name, field in fields.items()]
    entries.sort(key=attrgetter("begin", "end"))
    position = 8 + length
    for entry in entries:
        if entry.begin != position:
            fault = "overlaps another" if entry.begin < position else "leaves a hole before it"
            raise FormatError(f"{where}: tensor {entry.name} {fault} (data_offsets)")
        position = entry.end
    if position != file_size:
        raise FormatError(
            f"{where}: tensors end at byte {position} of {file_size}; "
            "the file is truncated or has bytes appended, fetch it again"
        )
    return Header(raw, {entry.name: entry for entry in entries}, metadata)


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
    entries = {name: _entry(name, field, len(raw), "") for name, field in fields.items()}
    return Header(raw, entries, dict(metadata))


def _entry(name: str, field: Any, data_start: int, where: str) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = field["dtype"], field["shape"], field["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise FormatError(f"{where}: tensor {name} lacks dtype, shape or data_offsets") from None
    if not name.isprintable():
        raise FormatError(f"{where}: tensor name {name!r} holds a character that cannot be printed")
    sizes = [*shape, begin, end] if type(shape) is list and len(shape) <= 64 else [None]
    for size in sizes:
        if type(size) is not int or not 0 <= size <= _MOST:
            raise FormatError(f"{where}: tensor {name} has a shape or offset that is no size")
    if type(dtype) is not str or dtype not in ITEM_BYTES:
        raise FormatError(f"{where}: tensor {name} has unknown dtype {shortened(repr(dtype))}")
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != expected:
        raise FormatError(
            f"{where}: tensor {name} {dtype} {shortened(shape)} needs {shortened(expected)} bytes, "
            f"data_offsets give {end - begin}"
        )
    return TensorEntry(name, dtype, tuple(shape), data_start + begin, data_start + end)
