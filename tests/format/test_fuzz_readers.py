"""Headers and manifests of arbitrary bytes: read, or refused in one line as FormatError."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tritllm.errors import FormatError
from tritllm.format.manifest import parse_manifest
from tritllm.format.safetensors_header import Header, build_header, read_header

TENSORS = [("a.weight", "U8", (2, 3)), ("b", "F32", (2,)), ("empty", "F16", (0, 4))]
FILE = build_header(TENSORS, {"format": "pt"}).raw + bytes(14)
SCALAR = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
JSON = st.recursive(
    SCALAR,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)
FIELDS = st.dictionaries(
    st.sampled_from(["dtype", "shape", "data_offsets", "other"]),
    st.sampled_from(["F32", "U8", [2, 3], [0, 8], [-1, 7], [0, 1e3], [1 << 70, 1 << 70]]) | SCALAR,
)


def read(file: bytes) -> Header:
    def part(offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(file), "reads outside of the file"
        return file[offset : offset + length]

    return read_header(part, len(file), "x.safetensors")


def is_read(reader: Callable[[bytes], object], data: bytes) -> bool:
    try:
        reader(data)
    except FormatError as error:
        said = str(error)
    else:
        return True
    assert said.isprintable()
    assert len(said) < 1000
    return False


def with_length(header: bytes, tail: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + tail


@given(st.binary(max_size=400))
@example(b"")
@example((1 << 63).to_bytes(8, "little"))
@example(with_length(b"[" * 100_000))
@example(with_length(b'{"\xff":1}'))
@example(with_length(b'{"a":1,"a":1}'))
def test_header_of_any_bytes(data):
    is_read(read, data)
    is_read(read, with_length(data))


@given(st.dictionaries(st.text(max_size=8), FIELDS | SCALAR, max_size=3), st.binary(max_size=40))
def test_header_of_any_json(fields, tail):
    is_read(read, with_length(json.dumps(fields).encode(), tail))


@given(st.data())
def test_header_with_changed_bytes(data):
    file = bytearray(FILE)
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(file)))
    if is_read(read, bytes(file[:cut])):
        header = read(bytes(file[:cut]))
        assert header.file_bytes == cut
        assert all(e.begin <= e.end <= cut for e in header.entries.values())


def test_header_that_was_not_changed():
    assert list(read(FILE).entries) == [name for name, _, _ in TENSORS]
    with pytest.raises(FormatError, match="truncated"):
        read(FILE[:-1])


@given(st.binary(max_size=400) | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 100_000)
@example(b"\xff\xfe{}")
@example(b'{"format_version": 1e999}')
@example(b'{"format_version": ' + b"9" * 5000 + b"}")
def test_manifest_of_any_bytes(data):
    assert not is_read(lambda text: parse_manifest(text, "tritllm.json"), data)
