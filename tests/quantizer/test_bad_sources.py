"""Sources that lie, lack or are of the wrong kind: one line that says where, nothing left over."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.model_folders import (
    BF16,
    hashes,
    llama,
    random_tensors,
    result_hashes,
    safetensors_bytes,
    shard_names,
    split,
    write_family,
    write_model,
)

from tritllm import quantize
from tritllm.errors import FormatError, OutputError, SourceError, TritError
from tritllm.format.safetensors_header import Header, read_header

LINEAR = "model.layers.0.mlp.up_proj.weight"
SHARD = "model.safetensors"


def refused(error: type[TritError], source: Path, match: str, **arguments) -> str:
    """Quantizing raises one line that matches, and no folder takes its final name."""
    out = source.parent / "out"
    arguments.setdefault("configs", ["uniform-d2"])
    with pytest.raises(error, match=match) as raised:
        quantize(str(source), out=out, **arguments)
    message = str(raised.value)
    assert message
    assert message.isprintable()
    assert not list(out.glob("*/packed"))
    assert not list(out.glob("*/model"))
    return message


@pytest.fixture
def source(tmp_path):
    return write_family(tmp_path / "source")


@pytest.fixture
def sharded(tmp_path):
    return write_family(tmp_path / "source", shards=2)


def with_tensor(folder: Path, name: str, array: np.ndarray, **config) -> Path:
    tensors = random_tensors(llama()) | {name: array}
    return write_model(folder / "source", {"model_type": "llama"} | config, [tensors])


# Folders and files


def test_no_such_folder(tmp_path):
    for name in ("./nowhere", str(tmp_path / "nowhere"), "a/b/c", "word"):
        with pytest.raises(SourceError, match="no such folder, and not a Hub id"):
            quantize(name, ["uniform-d2"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "x.ckpt"])
def test_pickles_are_refused_with_what_to_do(tmp_path, name):
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / name).write_bytes(b"\x80\x04")
    refused(SourceError, source, rf"{name} is a pickle.*save_pretrained")
    assert not (tmp_path / "out").exists()


def test_no_weights(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    refused(SourceError, source, "no safetensors weights")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, r"no config\.json"),
        (b"{", r"config\.json: not valid JSON"),
        (b"\xff\xfe\x00", r"config\.json: not valid JSON"),
        (b"[" * 100_000, r"config\.json: not valid JSON"),
        (b"[]", r"config\.json: not a JSON object"),
        (b"null", r"config\.json: not a JSON object"),
        (b'{"vocab_size": ' + b"9" * 400 + b"}", r"config\.json: not valid JSON \(a number of 400"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", r"config\.json: not valid JSON"),
        (rb'{"model_type": "\ud800"}', r"config\.json: not valid JSON \(half of a surrogate"),
    ],
)
def test_a_broken_config(source, content, match):
    (source / "config.json").unlink()
    if content is not None:
        (source / "config.json").write_bytes(content)
    refused(SourceError, source, match)


def test_already_quantized_by_config(source):
    (source / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    refused(SourceError, source, "already quantized")


def test_our_own_packed_folder_is_already_quantized(source, tmp_path):
    quantize(str(source), ["uniform-d2"], tmp_path / "first")
    packed = tmp_path / "first/uniform-d2/packed"
    with pytest.raises(SourceError, match="already quantized"):
        quantize(str(packed), ["uniform-d2"], tmp_path / "out")


def test_no_linear_recognised(tmp_path):
    source = write_model(
        tmp_path / "source", {"model_type": "odd"}, [{"a.weight": np.ones((4, 4), np.float32)}]
    )
    refused(SourceError, source, "no linear weight recognised in model type odd.*--include")
    settings = {"include": ["a.weight"], "allow_low_coverage": True}
    (report,) = quantize(str(source), ["uniform-d2"], tmp_path / "out", **settings)
    assert list(report["quantized"]) == ["a.weight"]


def test_unindexed_shards(sharded):
    (sharded / "model.safetensors.index.json").unlink()
    refused(SourceError, sharded, r"2 \.safetensors files but neither")


def test_missing_shard(sharded):
    (sharded / shard_names(2)[1]).unlink()
    refused(SourceError, sharded, "shard model-00002-of-00002.safetensors is missing")


def edit_index(folder: Path, edit) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["a\nb", "\x1b[1m", ""])
def test_index_naming_tensors_that_cannot_be_printed(sharded, name):
    edit_index(sharded, lambda index: index["weight_map"].update({name: shard_names(2)[0]}))
    refused(SourceError, sharded, "names tensor '.* which has none")


@pytest.mark.parametrize("shard", shard_names(2))
def test_index_naming_absent_tensors(sharded, shard):
    edit_index(sharded, lambda index: index["weight_map"].update({"ghost.weight": shard}))
    refused(SourceError, sharded, rf"names tensor 'ghost\.weight' in '{shard}', which has none")


def test_index_naming_the_wrong_shard(sharded):
    edit_index(sharded, lambda index: index["weight_map"].update({LINEAR: shard_names(2)[1]}))
    refused(SourceError, sharded, f"names tensor '{LINEAR}' in 'model-00002")


def test_duplicate_tensor_in_two_shards(tmp_path):
    one, two = split(random_tensors(llama()), 2)
    source = write_model(
        tmp_path / "source", {"model_type": "llama"}, [one, two | {LINEAR: one[LINEAR]}]
    )
    refused(SourceError, source, f"tensor {LINEAR} is in both model-00001.* and model-00002")


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "..",
        "model.bin",
        "",
        "new\nline.safetensors",
        7,
        None,
        ["a"],
    ],
)
def test_path_traversal_in_shard_names(sharded, name):
    (sharded.parent / SHARD).write_bytes(safetensors_bytes(random_tensors(llama())))
    edit_index(sharded, lambda index: index["weight_map"].update({LINEAR: name}))
    refused(SourceError, sharded, "is not a plain|is missing")


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": 3}']
)
def test_a_broken_index(sharded, content):
    (sharded / "model.safetensors.index.json").write_bytes(content)
    refused(SourceError, sharded, r"model\.safetensors\.index\.json")


class HostileFiles:
    """Stands for a Hub repository, whose file names are not a file system's."""

    revision = None

    def __init__(self, folder: Path, extra: str) -> None:
        from tritllm.storage.model_files import LocalFiles

        self._local = LocalFiles(folder)
        self.name, self._extra = "org/name", extra

    def sizes(self):
        return self._local.sizes() | {self._extra: 4}

    def read(self, name, offset, length):
        if name == self._extra:
            return b"evil"[offset : offset + length]
        return self._local.read(name, offset, length)

    def stamp(self, name):
        return "1"


@pytest.mark.parametrize(
    "name", ["../evil.txt", "a/../../evil.txt", "/tmp/evil", "a\\..\\b", "a\nb"]
)
def test_path_traversal_in_side_files(source, monkeypatch, name):
    from tritllm.quantizer import quantize as module

    monkeypatch.setattr(module, "open_files", lambda *_: HostileFiles(source, name))
    refused(SourceError, source, "is not a plain relative path")
    assert {p.name for p in source.parent.iterdir()} == {"source"}


# Headers


def write_header(folder: Path, fields, data: bytes = b"", length: int | None = None) -> None:
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    (folder / SHARD).write_bytes(
        struct.pack("<Q", len(text) if length is None else length) + text + data
    )


def field(dtype="F16", shape=(2, 2), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("keep", [0, 3, 7, 8, 100, -1, -4000])
def test_truncated_file(source, keep):
    data = (source / SHARD).read_bytes()
    (source / SHARD).write_bytes(data[:keep])
    refused(FormatError, source, r"^model\.safetensors: .*(truncated|too short).*fetch it again")


def test_bytes_appended(source):
    with open(source / SHARD, "ab") as file:
        file.write(b"\0")
    refused(FormatError, source, "bytes appended")


@pytest.mark.parametrize("length", [0, 1, 1 << 40, (1 << 64) - 1, 200_000_000])
def test_header_length_that_lies(source, length):
    data = bytearray((source / SHARD).read_bytes())
    data[:8] = struct.pack("<Q", length)
    (source / SHARD).write_bytes(data)
    refused(FormatError, source, "^model.safetensors: header")


@pytest.mark.parametrize(
    ("fields", "data", "match"),
    [
        (b"not json", b"", "not valid JSON"),
        (b"\xff\xff", b"", "not valid JSON"),
        (b"[1]", b"", "not a JSON object"),
        (b"[" * 200_000, b"", "not valid JSON"),
        (b'{"a":' * 200_000, b"", "not valid JSON"),
        (b'{"a": ' + b"9" * 10_000 + b"}", b"", "not valid JSON"),
        (b'{"a": 1, "a": 2}', b"", "'a' appears twice"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
        ({"__metadata__": []}, b"", "__metadata__"),
        ({}, b"", "no tensors"),
        ({"t": field()}, b"1234567", "truncated"),
        ({"t": field(offsets=(0, 7))}, b"1234567", "tensor t .*needs 8 bytes"),
        ({"t": field(offsets=(0, 16))}, b"1" * 16, "tensor t .*needs 8 bytes"),
        ({"t": field(offsets=(-8, 0))}, b"", "tensor t has a shape or offset that is no size"),
        ({"t": field(offsets=(8, 0))}, b"1" * 8, "tensor t .*needs 8 bytes"),
        ({"t": field(offsets=(1 << 62, (1 << 62) + 8))}, b"1" * 8, "tensor t leaves a hole"),
        ({"t": field(offsets=(0, 1 << 80))}, b"", "tensor t has a shape or offset"),
        ({"t": field(offsets=(0.0, 8.0))}, b"1" * 8, "tensor t has a shape or offset"),
        ({"t": field(offsets=(8, 16))}, b"1" * 16, "tensor t leaves a hole"),
        ({"t": field(), "u": field()}, b"1" * 8, "tensor u overlaps"),
        ({"t": field(), "u": field(offsets=(4, 12))}, b"1" * 12, "tensor u overlaps"),
        ({"t": field(), "u": field(offsets=(12, 20))}, b"1" * 20, "tensor u leaves a hole"),
        ({"t": field(shape=(2, -2))}, b"1" * 8, "tensor t has a shape or offset"),
        ({"t": field(shape=(True, 4))}, b"1" * 8, "tensor t has a shape or offset"),
        ({"t": field(shape=(1 << 40, 1 << 40))}, b"1" * 8, "tensor t .*needs"),
        ({"t": field() | {"shape": 4}}, b"1" * 8, "tensor t has a shape or offset"),
        ({"t": field(dtype="F12")}, b"1" * 8, "tensor t has unknown dtype 'F12'"),
        ({"t": field(dtype=None)}, b"1" * 8, "tensor t has unknown dtype"),
        ({"t": field(dtype=["F16"])}, b"1" * 8, "tensor t has unknown dtype"),
        ({"t": 5}, b"", "tensor t lacks"),
        ({"t": {"dtype": "F16", "shape": [1]}}, b"12", "tensor t lacks"),
        ({"t": field() | {"data_offsets": [0]}}, b"1" * 8, "tensor t lacks"),
        ({"a\nb": field()}, b"1" * 8, r"tensor name 'a\\nb'"),
        ({"\x1b[31mred": field()}, b"1" * 8, "tensor name"),
        ({"\ud800": field()}, b"1" * 8, "tensor name"),
    ],
)  # fmt: skip
def test_lying_headers(source, fields, data, match):
    write_header(source, fields, data)
    refused(TritError, source, match)
    assert not (source.parent / "out").exists()


def header_or_error(data: bytes) -> Header | str:
    """The header, or FormatError's one line; any other exception is the test's failure."""
    try:
        return read_header(lambda offset, size: data[offset : offset + size], len(data), "file")
    except FormatError as error:
        return str(error)


@given(st.binary(max_size=200), st.none() | st.integers(0, 300))
def test_no_bytes_raise_anything_but_format_error(text, length):
    data = struct.pack("<Q", len(text) if length is None else length) + text
    result = header_or_error(data)
    assert isinstance(result, Header) or result.startswith("file: ")
    assert isinstance(result, Header) or result.isprintable()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["t", "u", "__metadata__"]),
        st.one_of(
            json_values,
            st.fixed_dictionaries(
                {
                    "dtype": st.sampled_from(["F16", "U8", "X"]) | json_values,
                    "shape": st.lists(st.integers(-1, 4), max_size=3) | json_values,
                    "data_offsets": st.lists(st.integers(-1, 16), max_size=3) | json_values,
                }
            ),
        ),
    ),
    st.integers(0, 32),
)
def test_no_fields_of_a_header_raise_anything_but_format_error(fields, size):
    text = json.dumps(fields).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(size)
    result = header_or_error(data)
    if isinstance(result, Header):
        assert sum(entry.nbytes for entry in result.entries.values()) == size
    else:
        assert result.isprintable()


# Tensors


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, BF16, np.float32], ids=["f16", "bf16", "f32"])
def test_a_weight_that_is_not_finite_is_named_with_its_position(tmp_path, value, dtype):
    weight = np.ones((72, 40), dtype)
    weight[5, 7] = weight[60, 3] = value
    source = with_tensor(tmp_path, LINEAR, weight)
    message = refused(SourceError, source, rf"^model\.safetensors: tensor {LINEAR}: .*5, ?7")
    assert "--exclude" in message


def test_not_finite_in_a_kept_tensor_is_kept(tmp_path):
    norm = np.full(40, -np.inf, np.float32)
    source = with_tensor(tmp_path, "model.norm.weight", norm)
    quantize(str(source), ["uniform-d2"], tmp_path / "out")
    from support.model_folders import load_safetensors

    stored = load_safetensors(tmp_path / "out/uniform-d2/model" / SHARD)["model.norm.weight"]
    np.testing.assert_array_equal(stored, norm)


@pytest.mark.parametrize("dtype", [BF16, np.float32], ids=["bf16", "f32"])
def test_a_kept_value_beyond_float16_suggests_bfloat16(tmp_path, dtype):
    embedding = np.ones((50, 40), dtype)
    embedding[3, 3] = 70000
    source = with_tensor(tmp_path, "model.embed_tokens.weight", embedding)
    refused(
        SourceError,
        source,
        r"^model\.safetensors: tensor model\.embed_tokens\.weight: .*--dtype bfloat16",
    )
    quantize(str(source), ["uniform-d2"], tmp_path / "other", dtype="bfloat16")
    quantize(str(source), ["uniform-d2"], tmp_path / "third", write=["packed"])


def test_a_linear_weight_beyond_float16_suggests_bfloat16(tmp_path):
    source = with_tensor(tmp_path, LINEAR, np.full((72, 40), 1e5, np.float32))
    refused(SourceError, source, rf"^model\.safetensors: tensor {LINEAR}: .*--dtype bfloat16")
    quantize(str(source), ["uniform-d2"], tmp_path / "other", dtype="bfloat16")


@pytest.mark.parametrize(
    "dtype", [ml_dtypes.float8_e4m3fn, np.int8, np.uint8, np.int64, np.float64]
)
def test_weights_of_other_dtypes(tmp_path, dtype):
    source = with_tensor(tmp_path, LINEAR, np.ones((72, 40)).astype(dtype))
    refused(SourceError, source, rf"^model\.safetensors: tensor {LINEAR}: dtype .*--exclude")
    assert not (tmp_path / "out").exists()


def test_fp8_is_refused_also_where_it_would_be_kept(tmp_path):
    scale = np.ones(3).astype(ml_dtypes.float8_e4m3fn)
    source = with_tensor(tmp_path, "model.scale", scale)
    refused(SourceError, source, r"^model\.safetensors: tensor model\.scale: dtype F8_E4M3")


@pytest.mark.parametrize("shape", [(40,), (0, 40), (72, 0), (0,), (2, 36, 40), (), (72, 40, 1)])
def test_linear_names_of_other_shapes(tmp_path, shape):
    source = with_tensor(tmp_path, LINEAR, np.ones(shape, np.float16))
    message = refused(SourceError, source, rf"^model\.safetensors: tensor {LINEAR}: shape")
    assert str(list(shape)) in message
    assert not (tmp_path / "out").exists()
    (report,) = quantize(str(source), ["uniform-d2"], tmp_path / "out", exclude=[LINEAR])
    assert report["kept"][LINEAR] == "excluded on request"


def test_only_a_weight_can_be_included(tmp_path, source):
    refused(SourceError, source, "shape .* is not a 2-D", include=["model.norm.weight"])
    other = with_tensor(tmp_path / "b", "model.table", np.ones((4, 4), np.float16))
    refused(SourceError, other, "tensor model.table: only X.weight", include=["model.table"])


# Settings


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"configs": ["uniform-d5"]}, "unknown config 'uniform-d5'; known: uniform-d1"),
        ({"configs": ["uniform-d0"]}, "unknown config"),
        ({"configs": [""]}, "unknown config"),
        ({"configs": []}, "no config"),
        ({"depth": ["*=5"]}, "depth override"),
        ({"depth": ["*=0"]}, "depth override"),
        ({"depth": ["nonsense"]}, "depth override"),
        ({"depth": ["=2"]}, "depth override"),
        ({"codec": "v9"}, "unknown codec 'v9'; known: "),
        ({"dtype": "float32"}, "--dtype takes float16 or bfloat16, not 'float32'"),
        ({"write": ["packed", "gguf"]}, "--write takes packed, model or both"),
        ({"write": []}, "--write takes"),
        ({"revision": "main"}, "is a local folder"),
        ({"stream": True}, "is a local folder"),
    ],
)
def test_unknown_settings(source, arguments, match):
    refused(TritError, source, match, **arguments)
    assert not (source.parent / "out").exists()


# The output


def test_dry_run_writes_nothing(source, tmp_path):
    plans = []
    assert quantize(
        str(source), ["uniform-d2"], tmp_path / "out", dry_run=True, on_plan=plans.append
    ) == []  # fmt: skip
    assert not (tmp_path / "out").exists()
    quantize(str(source), ["uniform-d2"], tmp_path / "out")
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.name != "report.json"]
    written = sum(path.stat().st_size for path in files)
    assert plans[0].disk_bytes == pytest.approx(written, abs=40_000)  # index, card, manifest


def test_an_output_folder_that_holds_something_else(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("x")
    refused(OutputError, source, "holds thesis.tex, which is not of this run")
    assert hashes(tmp_path / "out").keys() == {"thesis.tex"}


@pytest.mark.parametrize("name", ["uniform-d2", "uniform-d2/packed", "uniform-d2/packed.partial"])
def test_an_output_folder_of_the_same_name_but_not_ours(source, tmp_path, name):
    (tmp_path / "out" / name).mkdir(parents=True)
    (tmp_path / "out" / name / "precious").write_text("x")
    with pytest.raises(OutputError, match="holds uniform-d2, which is not of this run"):
        quantize(str(source), ["uniform-d2"], tmp_path / "out")
    assert hashes(tmp_path / "out").keys() == {f"{name}/precious"}


def test_output_that_is_a_file(source, tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputError, match="is not a folder"):
        quantize(str(source), ["uniform-d2"], tmp_path / "out")
    with pytest.raises(OutputError, match="out") as raised:
        quantize(str(source), ["uniform-d2"], tmp_path / "out/below")
    assert "\n" not in str(raised.value)
    assert (tmp_path / "out").read_text() == "x"


@pytest.mark.parametrize("below", [".", "out", "a/b"])
def test_output_within_the_source(source, below):
    before = hashes(source)
    with pytest.raises(OutputError, match="lies in the source's own folder"):
        quantize(str(source), ["uniform-d2"], source / below)
    assert hashes(source) == before


@pytest.mark.parametrize("function", ["mkdir", "open", "replace"])
def test_read_only_output(source, tmp_path, monkeypatch, function):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    if function == "mkdir":
        monkeypatch.setattr(Path, "mkdir", refuse)
    elif function == "replace":
        monkeypatch.setattr(os, "replace", refuse)
    else:
        from tritllm.storage import shard_writer

        monkeypatch.setattr(shard_writer, "open", refuse, raising=False)
    refused(OutputError, source, f"{tmp_path / 'out'}.*: Read-only file system; ")


def test_a_folder_that_may_not_be_looked_into(source, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "iterdir", refuse)
    (source.parent / "out").mkdir()
    refused(OutputError, source, "Permission denied")


@pytest.mark.parametrize("free", [0, 60_000])
def test_too_little_free_disk_is_refused_before_the_first_byte(source, monkeypatch, free):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 0, free))
    refused(OutputError, source, "GB more are needed and .* are free")
    assert not (source.parent / "out").exists()
    refused(OutputError, source, "GB more are needed", dry_run=True)


def test_other_results_do_not_count_as_already_written(source, monkeypatch):
    quantize(str(source), ["uniform-d1"], source.parent / "out")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 0, 60_000))
    with pytest.raises(OutputError, match="are needed"):
        quantize(str(source), ["uniform-d2"], source.parent / "out")


def test_too_little_memory_is_refused_before_the_first_byte(source, monkeypatch):
    monkeypatch.setattr("tritllm.quantizer.resources.available_memory", lambda: 1000)
    refused(TritError, source, "GB of memory are needed")
    assert not (source.parent / "out").exists()


@pytest.mark.parametrize("call", range(1, 60, 4))
def test_a_disk_that_fills_while_writing(source, tmp_path, monkeypatch, call):
    """ENOSPC at some write; with room again the run ends as if nothing had been."""
    from tritllm.storage.shard_writer import ShardWriter

    write_at = ShardWriter._write_at
    calls = 0

    def full(self, position, data):
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_at(self, position, data)

    monkeypatch.setattr(ShardWriter, "_write_at", full)
    refused(OutputError, source, r"model\.safetensors: No space left on device; make room")
    quantize(str(source), ["uniform-d2"], tmp_path / "out")
    quantize(str(source), ["uniform-d2"], tmp_path / "whole")
    assert result_hashes(tmp_path / "out") == result_hashes(tmp_path / "whole")


@pytest.mark.parametrize("call", range(1, 31, 3))
def test_a_disk_that_fails_when_files_are_finished(source, tmp_path, monkeypatch, call):
    calls = 0

    def failing(descriptor):
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", failing)
    out = tmp_path / "out"
    with pytest.raises(OutputError, match=r"out.*: Input/output error; fix the folder") as raised:
        quantize(str(source), ["uniform-d2"], out)
    assert "\n" not in str(raised.value)
    whole = tmp_path / "whole"
    quantize(str(source), ["uniform-d2"], whole)
    expected = result_hashes(whole)
    for name, digest in hashes(out).items():
        if name.startswith(("uniform-d2/packed/", "uniform-d2/model/")):
            assert expected[name] == digest
    quantize(str(source), ["uniform-d2"], out)
    assert result_hashes(out) == expected


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE")
def test_a_file_size_limit_stands_for_a_full_disk(source, tmp_path, command_line):
    out = tmp_path / "out"
    arguments = ["quantize", "--model", str(source), "--configs", "uniform-d2", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "tritllm", *arguments],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)),
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {out}/uniform-d2/")
    assert "File too large; make room" in done.stderr
    assert not (out / "uniform-d2/packed").exists()
    command_line(*arguments)
    quantize(str(source), ["uniform-d2"], tmp_path / "whole")
    assert result_hashes(out) == result_hashes(tmp_path / "whole")
