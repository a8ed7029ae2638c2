"""The rules for readers: a packed folder that is not exactly what its writer wrote is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.model_folders import (
    llama,
    load_safetensors,
    random_tensors,
    safetensors_bytes,
    shard_names,
    split,
    write_model,
)

from tritllm import FormatError, PackedCheckpoint, TritError, quantize, verify
from tritllm.format.manifest import manifest_bytes

LINEAR = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"
INDEX = "model.safetensors.index.json"
LLAMA_CARD = b"---\nlicense: llama3.1\n---\n"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A packed folder of two shards at depth 2, with a NOTICE; not to be changed."""
    folder = tmp_path_factory.mktemp("packed")
    tensors = random_tensors(llama(hidden=37, inner=50, layers=1))  # 37: padding in a last byte
    source = write_model(
        folder / "source",
        {"model_type": "llama"},
        split(tensors, 2),
        {"README.md": LLAMA_CARD, "tokenizer.json": b"{}", "sub/a.txt": b"text"},
    )
    quantize(str(source), ["uniform-d2"], folder / "out", write=["packed"])
    return folder / "out/uniform-d2/packed"


@pytest.fixture
def packed(original, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(original, tmp_path / "packed"))


def shard_of(packed: Path, name: str) -> Path:
    manifest = json.loads((packed / "tritllm.json").read_text())
    return packed / manifest["tensors"][name]["file"]


def edit_manifest(packed: Path, edit) -> None:
    """Change the manifest and sign it anew, so that what was changed is what is noticed."""
    path = packed / "tritllm.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_bytes(manifest_bytes(manifest))


def edit_tensors(packed: Path, shard: Path, edit) -> None:
    """Rewrite a shard, and the hashes and the index that go with it."""
    tensors = load_safetensors(shard)
    edit(tensors)
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))
    shard.write_bytes(safetensors_bytes(tensors))
    raw = shard.read_bytes()
    header = raw[: 8 + struct.unpack("<Q", raw[:8])[0]]

    def sign(manifest):
        manifest["headers"][shard.name] = hashlib.sha256(header).hexdigest()
        for name, array in tensors.items():
            if name in manifest["tensors"]:
                digest = hashlib.sha256(array.tobytes()).hexdigest()
                manifest["tensors"][name]["sha256"] = digest

    edit_manifest(packed, sign)


def refused(packed: Path, match: str) -> None:
    with pytest.raises(FormatError, match=match) as raised:
        verify(packed)
    assert "\n" not in str(raised.value)


def refused_on_opening(packed: Path, match: str) -> None:
    with pytest.raises(FormatError, match=match) as raised:
        PackedCheckpoint(packed)
    assert "\n" not in str(raised.value)


def test_an_unbroken_folder_verifies(original):
    found = verify(original)
    assert found.quantized == 7
    assert found.tensors == 3 * 7 + 5
    assert found.side_files == 5  # tokenizer, sub/a.txt, config, index, NOTICE
    steps = []
    verify(original, on_progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (found.nbytes, found.nbytes)


def test_the_card_may_be_rewritten(packed):
    (packed / "README.md").write_text("mine")
    verify(packed)


# Versions and the schema


@pytest.mark.parametrize("version", [2, 99, 10**30])
def test_a_newer_version(packed, version):
    edit_manifest(packed, lambda m: m.update(format_version=version, unheard_of=1))
    refused_on_opening(packed, rf"format version {version} is newer than 1; upgrade")


@pytest.mark.parametrize("version", [0, "1", None, 1.5, True, [1]])
def test_a_version_that_is_none(packed, version):
    edit_manifest(packed, lambda m: m.update(format_version=version))
    refused_on_opening(packed, r"tritllm\.json: \$\.format_version")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xff", b"[" * 100_000])
def test_a_manifest_that_is_none(packed, content):
    (packed / "tritllm.json").write_bytes(content)
    refused_on_opening(packed, r"tritllm\.json")


def test_no_manifest(packed):
    (packed / "tritllm.json").unlink()
    refused_on_opening(
        packed, r"packed, but without tritllm\.json: saved by transformers, or incom"
    )
    for config in (b"{}", b"[]", b"{", b'{"quantization_config": {"quant_method": "other"}}'):
        (packed / "config.json").write_bytes(config)
        refused_on_opening(packed, r"no tritllm\.json; not a packed checkpoint")


def test_no_such_folder(tmp_path):
    refused_on_opening(tmp_path / "nowhere", r"no tritllm\.json")


BREAKS = {
    "no codec": lambda m: m.pop("codec"),
    "codec": lambda m: m.update(codec=9),
    "group size": lambda m: m.update(group_size=64),
    "unknown key": lambda m: m.update(comment="hello"),
    "no tensors": lambda m: m.update(tensors={}),
    "no headers": lambda m: m.pop("headers"),
    "depth 5": lambda m: m["tensors"][LINEAR].update(depth=5),
    "depth 0": lambda m: m["tensors"][LINEAR].update(depth=0),
    "depth 2.0": lambda m: m["tensors"][LINEAR].update(depth=2.0),
    "depth true": lambda m: m["tensors"][LINEAR].update(depth=True),
    "in_features 37.0": lambda m: m["tensors"][LINEAR].update(in_features=37.0),
    "in_features 0": lambda m: m["tensors"][LINEAR].update(in_features=0),
    "in_features missing": lambda m: m["tensors"][LINEAR].pop("in_features"),
    "dtype": lambda m: m["tensors"][LINEAR].update(dtype="I8"),
    "shape -1": lambda m: m["tensors"][LINEAR].update(shape=[2, -1, 8]),
    "shape text": lambda m: m["tensors"][LINEAR].update(shape="2x50x8"),
    "hash": lambda m: m["tensors"][LINEAR].update(sha256="0"),
    "hash upper": lambda m: m["tensors"][LINEAR].update(sha256="A" * 64),
    "file path": lambda m: m["tensors"][LINEAR].update(file="../model.safetensors"),
    "file name": lambda m: m["tensors"][LINEAR].update(file="pytorch_model.bin"),
    "negative nmse": lambda m: m["tensors"][LINEAR].update(nmse=-1),
    "kept dtype": lambda m: m["tensors"][NORM].update(dtype="F12"),
    "both kinds": lambda m: m["tensors"][LINEAR].update(kept="norm"),
    "side file hash": lambda m: m["side_files"].update({"tokenizer.json": 5}),
    "source": lambda m: m.update(source="here"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_breaking_the_schema(packed, name):
    edit_manifest(packed, BREAKS[name])
    refused_on_opening(packed, r"tritllm\.json: \$")


def test_a_tensor_recorded_in_a_file_that_is_no_shard(packed):
    edit_manifest(packed, lambda m: m["tensors"][NORM].update(file="other.safetensors"))
    refused_on_opening(packed, f"tensor {NORM}")


# Tensors


@pytest.mark.parametrize("name", [LINEAR, f"{LINEAR}_scale", f"{LINEAR}_codebook", NORM])
def test_a_missing_tensor(packed, name):
    edit_tensors(packed, shard_of(packed, name), lambda tensors: tensors.pop(name))
    refused_on_opening(packed, rf"\.safetensors: tensor {name} is missing")


@pytest.mark.parametrize("suffix", ["_scale", "_codebook"])
def test_a_part_missing_everywhere(packed, suffix):
    name = LINEAR + suffix
    edit_tensors(packed, shard_of(packed, name), lambda tensors: tensors.pop(name))
    edit_manifest(packed, lambda m: m["tensors"].pop(name))
    refused_on_opening(packed, f"tensor {name} is missing")


def test_an_extra_tensor(packed):
    extra = np.zeros(3, np.float32)
    edit_tensors(packed, shard_of(packed, NORM), lambda tensors: tensors.update(extra=extra))
    refused_on_opening(packed, r"\.safetensors: tensor extra is not in the manifest")


def test_a_part_that_belongs_to_nothing(packed):
    part = {"part_of": "x.weight", "dtype": "U8", "shape": [3], "sha256": "0" * 64}
    edit_tensors(packed, shard_of(packed, NORM), lambda t: t.update(x=np.zeros(3, np.uint8)))
    file = shard_of(packed, NORM).name
    edit_manifest(packed, lambda m: m["tensors"].update(x=part | {"file": file}))
    refused_on_opening(packed, "tensor x belongs to no quantized weight")


def test_a_tensor_in_the_other_shard(packed):
    other = next(n for n in shard_names(2) if n != shard_of(packed, NORM).name)
    edit_manifest(packed, lambda m: m["tensors"][NORM].update(file=other))
    refused_on_opening(packed, f"tensor {NORM} is not in the manifest")


@pytest.mark.parametrize("suffix", ["", "_scale", "_codebook"])
def test_a_shape_that_differs_from_the_file(packed, suffix):
    def edit(manifest):
        manifest["tensors"][LINEAR + suffix]["shape"][-1] += 1

    edit_manifest(packed, edit)
    refused_on_opening(packed, f"tensor {LINEAR}{suffix} is .* the manifest says")


RESHAPES = {
    "": lambda a: a[:, :, :-1],
    "_scale": lambda a: a[:, :-1],
    "_codebook": lambda a: a[:, :-1],
}


@pytest.mark.parametrize("suffix", RESHAPES)
@pytest.mark.parametrize("cut", ["columns", "depth"])
def test_a_shape_that_does_not_follow_from_n_k_and_d(packed, suffix, cut):
    name = LINEAR + suffix
    change = RESHAPES[suffix] if cut == "columns" else lambda a: a[:-1]
    array = np.ascontiguousarray(change(load_safetensors(shard_of(packed, name))[name]))
    edit_tensors(packed, shard_of(packed, name), lambda tensors: tensors.update({name: array}))
    edit_manifest(packed, lambda m: m["tensors"][name].update(shape=list(array.shape)))
    refused_on_opening(packed, rf"tensor {LINEAR}.* expected")


def test_a_matrix_whose_planes_are_flat(packed):
    array = load_safetensors(shard_of(packed, LINEAR))[LINEAR].reshape(-1)
    edit_tensors(packed, shard_of(packed, LINEAR), lambda tensors: tensors.update({LINEAR: array}))
    edit_manifest(packed, lambda m: m["tensors"][LINEAR].update(shape=[array.size]))
    refused_on_opening(packed, r"tritllm\.json: \$\.tensors")


def test_planes_of_another_number_than_the_depth(packed):
    edit_manifest(packed, lambda m: m["tensors"][LINEAR].update(depth=3))
    refused_on_opening(packed, "quantization_config's depth is not the manifest's")
    manifest = json.loads((packed / "tritllm.json").read_text())
    depths = {
        name.removesuffix(".weight"): record["depth"]
        for name, record in manifest["tensors"].items()
        if "depth" in record
    }
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"]["depth"] = depths
    (packed / "config.json").write_text(json.dumps(config))
    refused_on_opening(packed, r"is U8 \[2, 50, 8\], expected U8 \[3, 50, 8\]")


def test_nothing_quantized(packed):
    edit_manifest(packed, lambda m: m.update(tensors={NORM: m["tensors"][NORM]}))
    refused_on_opening(packed, r"tritllm\.json: names no quantized weight")


def test_another_in_features(packed):
    edit_manifest(packed, lambda m: m["tensors"][LINEAR].update(in_features=41))
    refused_on_opening(packed, f"tensor {LINEAR}")


# Bytes that are no trits, with every hash put right


@pytest.mark.parametrize("suffix", ["", "_scale"])
@pytest.mark.parametrize("byte", [243, 255])
def test_a_byte_that_is_not_five_trits(packed, suffix, byte):
    def edit(tensors):
        tensors[LINEAR + suffix] = tensors[LINEAR + suffix].copy()
        tensors[LINEAR + suffix].reshape(-1)[0] = byte

    edit_tensors(packed, shard_of(packed, LINEAR), edit)
    refused(packed, rf"\.safetensors: tensor {LINEAR}: ")
    checkpoint = PackedCheckpoint(packed)
    with pytest.raises(ValueError, match=r"\d"):
        checkpoint.tensor(LINEAR).decode()


@pytest.mark.parametrize("suffix", ["", "_scale"])
@pytest.mark.parametrize("digit", [0, 2])
def test_padding_that_is_not_zero(packed, suffix, digit):
    """37 columns leave 3 trits of padding a row; 9 trits of scale indices leave 1."""

    def edit(tensors):
        array = tensors[LINEAR + suffix] = tensors[LINEAR + suffix].copy()
        last = array.reshape(-1)[-1:]
        assert last // 81 == 1  # the fifth trit is 0, written as digit 1
        last += np.uint8((digit - 1) * 81 % 256)

    edit_tensors(packed, shard_of(packed, LINEAR), edit)
    refused(packed, rf"\.safetensors: tensor {LINEAR}: .*padding")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: np.full_like(c, np.nan), "not finite"),
        (lambda c: np.where(c == c.max(), np.inf, c), "not finite"),
        (lambda c: c[:, ::-1], "not ascending"),
        (lambda c: -c[:, ::-1], "not ascending from zero or above"),
        (lambda c: c - c[:, :1] * np.float32(1.5), "not ascending from zero or above"),
    ],
    ids=["NaN", "infinite", "descending", "negative", "negative first"],
)
def test_a_broken_codebook(packed, change, match):
    name = f"{LINEAR}_codebook"

    def edit(tensors):
        tensors[name] = np.ascontiguousarray(change(tensors[name]), np.float32)

    edit_tensors(packed, shard_of(packed, name), edit)
    refused(packed, rf"\.safetensors: tensor {LINEAR}: codebook .*{match}")
    with pytest.raises(FormatError, match=match):
        PackedCheckpoint(packed).tensor(LINEAR)


# Files


@pytest.mark.parametrize("shard", shard_names(2))
def test_a_missing_shard(packed, shard):
    (packed / shard).unlink()
    refused_on_opening(packed, rf"{shard}: missing")


@pytest.mark.parametrize("name", ["model.safetensors", "sub/extra.safetensors"])
def test_an_extra_shard(packed, name):
    shutil.copy(packed / shard_names(2)[0], packed / name)
    refused_on_opening(packed, rf"{name}: not in the manifest")


def test_a_truncated_shard(packed):
    shard = packed / shard_names(2)[1]
    os.truncate(shard, shard.stat().st_size - 1)
    refused_on_opening(packed, r"model-00002-of-00002\.safetensors: .*truncated")


@pytest.mark.parametrize(
    "content", [None, b"", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": 3}', b"[" * 99_999]
)
def test_a_missing_or_wrong_index(packed, content):
    (packed / INDEX).unlink()
    if content is not None:
        (packed / INDEX).write_bytes(content)
    refused_on_opening(packed, r"index\.json: ")


def test_an_index_that_names_one_tensor_too_many(packed):
    index = json.loads((packed / INDEX).read_text())
    index["weight_map"]["ghost"] = shard_names(2)[0]
    (packed / INDEX).write_text(json.dumps(index))
    refused_on_opening(packed, r"index\.json: does not name the tensors that are here")


@pytest.mark.parametrize(
    "content", [None, b"", b"[]", b"{}", b'{"quantization_config": "x"}', b"[" * 99_999]
)
def test_a_missing_or_wrong_config(packed, content):
    (packed / "config.json").unlink()
    if content is not None:
        (packed / "config.json").write_bytes(content)
    refused_on_opening(
        packed, r"config\.json: (missing|not valid JSON|not a JSON object|no quantization_config)"
    )


def test_the_config_of_another_method(packed):
    (packed / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    refused_on_opening(packed, "quant_method is 'gptq', expected 'tritllm'")


@pytest.mark.parametrize("name", ["tokenizer.json", "sub/a.txt", "NOTICE"])
def test_a_side_file_missing_or_changed(packed, name):
    (packed / name).write_bytes((packed / name).read_bytes() + b" ")
    refused(packed, rf"{name}: SHA-256 differs")
    (packed / name).unlink()
    refused(packed, rf"{name}: missing")


def test_a_side_file_recorded_outside_of_the_folder(packed):
    (packed.parent / "secret").write_text("x")
    edit_manifest(packed, lambda m: m["side_files"].update({"../secret": "0" * 64}))
    refused(packed, r"\.\./secret: missing")
    edit_manifest(packed, lambda m: m["side_files"].update({"a\nb": "0" * 64}))
    refused(packed, r"tritllm\.json: \$\.side_files")


def test_reading_planes_that_are_not_there(original):
    for planes in (0, 3, -1):
        with pytest.raises(FormatError, match=f"tensor {LINEAR} has 2 planes, not {planes}"):
            PackedCheckpoint(original).tensor(LINEAR, planes)


# Any byte


@pytest.fixture(scope="module")
def scratch(original, tmp_path_factory):
    return Path(shutil.copytree(original, tmp_path_factory.mktemp("scratch") / "packed"))


FILES = (
    "tritllm.json",
    "config.json",
    INDEX,
    "NOTICE",
    "tokenizer.json",
    "sub/a.txt",
    *shard_names(2),
)


def test_no_file_is_left_out_below(original):
    found = {p.relative_to(original).as_posix() for p in original.rglob("*") if p.is_file()}
    assert found == {*FILES, "README.md"}


@settings(max_examples=30)
@given(st.data())
@pytest.mark.parametrize("name", FILES)
def test_any_changed_byte_is_noticed(scratch, name, data):
    whole = (scratch / name).read_bytes()
    offset = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != whole[offset]))
    try:
        (scratch / name).write_bytes(whole[:offset] + bytes([byte]) + whole[offset + 1 :])
        with pytest.raises(TritError):
            verify(scratch)
    finally:
        (scratch / name).write_bytes(whole)


@settings(max_examples=30)
@given(st.data())
@pytest.mark.parametrize("shard", shard_names(2))
def test_any_changed_byte_of_a_header_is_noticed(scratch, shard, data):
    whole = (scratch / shard).read_bytes()
    offset = data.draw(st.integers(0, 7 + struct.unpack("<Q", whole[:8])[0]))
    try:
        changed = whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :]
        (scratch / shard).write_bytes(changed)
        with pytest.raises(TritError):
            verify(scratch)
    finally:
        (scratch / shard).write_bytes(whole)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=100)
@given(st.data())
def test_no_manifest_raises_anything_but_trit_error(scratch, data):
    """Some value of the manifest becomes any other JSON value, and the manifest is signed anew."""
    whole = (scratch / "tritllm.json").read_bytes()
    manifest = json.loads(whole)
    node = changed = copy.deepcopy(manifest)
    while True:
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        if isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans()):
            node = node[key]
            continue
        node[key] = data.draw(json_values)
        break
    try:
        (scratch / "tritllm.json").write_bytes(manifest_bytes(changed))
        try:
            verify(scratch)  # what is no proof of anything, as the command line, may change
        except TritError as error:
            message = str(error)
        else:
            message = "verified"
        assert message.isprintable()
    finally:
        (scratch / "tritllm.json").write_bytes(whole)
