"""The written-out checks of tritllm.json against the published schema, over mutations."""

from __future__ import annotations

import copy
import json
from importlib.resources import files

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritllm.errors import FormatError
from tritllm.format import layout
from tritllm.format.manifest import manifest_bytes, parse_manifest

HASH = "0123456789abcdef" * 4
NAME = "model.layers.0.mlp.up_proj.weight"


def make_manifest() -> dict:
    file = "model.safetensors"
    tensors = {}
    for spec in layout.tensors_of(NAME, 3, 37, 2):
        record = {"file": file, "dtype": spec.dtype, "shape": list(spec.shape), "sha256": HASH}
        tensors[spec.name] = record | {"part_of": NAME}
    del tensors[NAME]["part_of"]
    tensors[NAME] |= {"depth": 2, "in_features": 37, "transposed": False, "nmse": 0.01}
    expert = NAME.replace("up_proj", "experts.1.up_proj")
    part = {"tensor": "model.experts.up", "shape": [2, 37, 3], "index": 1, "rows": [0, 6, 2]}
    tensors |= {
        name.replace(NAME, expert): record | (
            {"part_of": expert} if name != NAME else {"slice_of": part, "transposed": True}
        )
        for name, record in list(tensors.items())
    }  # fmt: skip
    norm = {"file": file, "dtype": "F16", "shape": [37], "sha256": HASH, "kept": "norm"}
    return {
        "format_version": 1,
        "tool": "tritllm 0.1.0",
        "codec": "v3",
        "config": "uniform-d2",
        "command": "tritllm quantize",
        "group_size": 16,
        "dequantized_dtype": "float16",
        "source": {"model": "m", "revision": None, "shards": {file: HASH}},
        "headers": {file: HASH},
        "tensors": tensors | {"model.norm.weight": norm},
        "not_stored": {"lm_head.weight": "model.embed_tokens.weight"},
        "side_files": {"config.json": HASH},
        "encoder": {"text_sha256": HASH, "tokens": 80_000},
    }


def make_validator():
    """Numbers such as 2.0 are no sizes here; `$` is the end of the text, as in ECMAScript."""
    text = (files("tritllm.format") / "tritllm.schema.json").read_text("utf-8")
    schema = json.loads(text.replace('$"', '\\\\Z"'))
    assert '\\\\Z"' in json.dumps(schema)
    base = jsonschema.Draft202012Validator
    base.check_schema(json.loads(text))
    integers = base.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    return jsonschema.validators.extend(base, type_checker=integers)(schema)


VALIDATOR = make_validator()


def fault_of(manifest: dict) -> str | None:
    try:
        parse_manifest(manifest_bytes(manifest), "tritllm.json")
    except FormatError as error:
        return str(error)
    return None


def check_agreement(manifest: dict) -> None:
    signed = json.loads(manifest_bytes(manifest))
    fault = fault_of(manifest)
    if fault and "names no quantized weight" in fault:  # which a schema cannot say
        fault = None
    refused = not VALIDATOR.is_valid(signed)
    assert refused == bool(fault), fault
    assert fault is None or (fault.isprintable() and len(fault) < 400)


def test_what_is_right():
    check_agreement(make_manifest())
    assert fault_of(make_manifest()) is None


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 5)
    | st.sampled_from([2.0, 16.0, 1 << 63, 10**40, "U8", "F32", "F8_E4M3", HASH, HASH + "\n"])
    | st.sampled_from(["a.safetensors", "a/b.safetensors", "a.safetensors\n", "", "\x7f", "A" * 64])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=400)
@given(st.data())
def test_mutations(data):
    """One value anywhere is replaced, removed, renamed, or has a neighbour added."""
    manifest = copy.deepcopy(make_manifest())
    node = manifest
    while True:
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        if isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans()):
            node = node[key]
            continue
        break
    action = data.draw(st.sampled_from(["replace", "remove", "rename", "add"]))
    if action == "replace":
        node[key] = data.draw(values)
    elif action == "remove":
        del node[key]
    elif isinstance(node, list):
        node.insert(key, data.draw(values))
    elif action == "rename":
        node[data.draw(st.text(max_size=4))] = node.pop(key)
    else:
        node[data.draw(st.text(max_size=4) | st.sampled_from(["depth", "kept", "part_of"]))] = (
            data.draw(values)
        )
    check_agreement(manifest)


@pytest.mark.parametrize("place", [(), ("source",), ("tensors", NAME), ("headers",)])
def test_every_field_with_every_kind_of_value(place):
    node = make_manifest()
    for key in place:
        node = node[key]
    for field in node:
        for value in (
            None,
            True,
            -1,
            0,
            1,
            2,
            16,
            3.5,
            1e400,
            "",
            "x",
            HASH,
            [],
            [1],
            {},
            {"a": 1},
        ):
            if value == float("inf"):
                continue
            manifest = make_manifest()
            target = manifest
            for key in place:
                target = target[key]
            target[field] = value
            check_agreement(manifest)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_no_json(text):
    data = manifest_bytes(make_manifest()).replace(b"0.01", text.encode())
    with pytest.raises(FormatError, match=r"tritllm\.json: not valid JSON"):
        parse_manifest(data, "tritllm.json")


@pytest.mark.parametrize(
    ("before", "more", "name"),
    [
        (b'"tool":', b'"codec": "v2", ', "codec"),
        (b'"tool":', b'"codec" : "a:b", ', "codec"),
        (b'"model":', rb'"model": "\u003a", ', "model"),
        (b'"depth":', b'"depth": 1, ', "depth"),
        (b'"tokens":', b'"list": [{"a": 1, "a": 2}], ', "a"),
        (b'"tokens":', b'"object": {"a": {"b": 1, "b": {}}}, ', "b"),
    ],
)
@pytest.mark.parametrize("command", ["tritllm quantize", r'tritllm "a:" ":" C:\"'])
def test_a_name_that_appears_twice(before, more, name, command):
    whole = manifest_bytes(make_manifest() | {"command": command})
    assert parse_manifest(whole, "tritllm.json")["command"] == command
    data = whole.replace(before, more + before, 1)
    assert data != whole
    with pytest.raises(FormatError, match=f"'{name}' appears twice"):
        parse_manifest(data, "tritllm.json")


def test_a_fault_is_found_in_whichever_record_it_is():
    manifest = make_manifest()
    norm = manifest["tensors"]["model.norm.weight"]
    manifest["tensors"] |= {f"{i}.norm.weight": norm for i in range(2500)}
    assert fault_of(manifest) is None
    for index in (0, 999, 1000, 2499):
        name = f"{index}.norm.weight"
        wrong = {"sha256": HASH[:-1] + "g", "shape": [37, True], "dtype": "F8_E4M3", "file": "a/b"}
        for field, value in wrong.items():
            one = manifest | {"tensors": manifest["tensors"] | {name: norm | {field: value}}}
            fault = fault_of(one)
            assert fault
            assert f"$.tensors['{name}'].{field}: " in fault


@pytest.mark.parametrize("escape", [rb"\ud800", rb"\uDFFF"])
def test_half_of_a_surrogate_pair(escape):
    data = manifest_bytes(make_manifest()).replace(b"tritllm 0.1.0", escape)
    with pytest.raises(FormatError, match="half of a surrogate pair"):
        parse_manifest(data, "tritllm.json")


def test_a_message_never_quotes_the_file():
    manifest = make_manifest()
    manifest["tensors"][NAME] = {"x" * 10_000: "y" * 10_000}
    manifest["tensors"]["z" * 10_000] = manifest["tensors"].pop(NAME)
    fault = fault_of(manifest)
    assert fault
    assert len(fault) < 400


def test_a_byte_changed_in_a_value():
    data = manifest_bytes(make_manifest()).replace(b"0.01", b"0.02")
    with pytest.raises(FormatError, match="SHA-256 differs from the one it states"):
        parse_manifest(data, "tritllm.json")
