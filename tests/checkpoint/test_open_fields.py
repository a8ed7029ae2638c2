"""How the digits were chosen is free text and a free object; every reader carries both along."""

from __future__ import annotations

import hashlib
import json

import pytest
from support.model_folders import hashes, write_family

from tritllm import FormatError, PackedCheckpoint, dequantize, info, quantize, verify
from tritllm.format.manifest import manifest_bytes

ENCODER = {"name": "calibrated", "text_sha256": "0" * 64, "tokens": 80_000, "seeds": [1, None]}


@pytest.fixture
def packed(tmp_path):
    source = write_family(tmp_path / "source", tie_word_embeddings=False)
    quantize(str(source), ["uniform-d2"], tmp_path / "out")
    return tmp_path / "out/uniform-d2/packed"


def put(packed, **fields):
    """Write fields into config.json and manifest as another writer would, and sign."""
    path = packed / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= fields
    path.write_text(json.dumps(config))
    manifest = json.loads((packed / "tritllm.json").read_text()) | fields
    manifest["side_files"]["config.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (packed / "tritllm.json").write_bytes(manifest_bytes(manifest))


def test_another_encoder_needs_no_other_reader(packed, tmp_path):
    put(packed, codec="v4-calibrated", encoder=ENCODER)
    verify(packed)
    checkpoint = PackedCheckpoint(packed)
    assert checkpoint.manifest["encoder"] == ENCODER
    assert checkpoint.config["quantization_config"]["encoder"] == ENCODER
    assert info(str(packed)).codec == "v4-calibrated"
    made = dequantize(packed, tmp_path / "model")
    written = hashes(packed.parent / "model")
    assert {n: h for n, h in hashes(made).items() if n != "README.md"} == {
        n: h for n, h in written.items() if n != "README.md"
    }
    assert "v4-calibrated" in (made / "README.md").read_text()


@pytest.mark.parametrize("encoder", [{}, {"note": "ä" * 10_000}, {"big": 10**300 - 1, "e": 1e300}])
def test_the_object_is_open(packed, encoder):
    put(packed, encoder=encoder)
    verify(packed)


def nested(depth: int):
    """Objects and lists inside each other, an object outermost."""
    value: dict | list = {}
    for level in range(2, depth + 1):
        value = [value] if (depth - level) % 2 else {"inside": value}
    return value


@pytest.mark.parametrize("fields", [{"encoder": nested(32)}, {"encoder": nested(31)}])
def test_nesting_that_every_library_can_read(packed, fields):
    put(packed, **fields)
    verify(packed)


@pytest.mark.parametrize("depth", [33, 400])
def test_nesting_that_is_too_deep(packed, depth):
    put(packed, encoder=nested(depth))
    with pytest.raises(FormatError, match="encoder: encoder is nested more than 32 deep"):
        verify(packed)


@pytest.mark.parametrize("file", ["config.json", "tritllm.json"])
@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 5000])
def test_numbers_that_are_none_elsewhere(packed, file, number):
    refused_number(packed, file, number)


@pytest.mark.parametrize("number", ["1e999", "NaN", "-Infinity"])
def test_numbers_that_are_no_json(packed, number):
    refused_number(packed, "tritllm.json", number)


def refused_number(packed, file, number):
    put(packed, encoder={"number": 12345.5})
    path = packed / file
    text = path.read_text().replace("12345.5", number)
    if file == "tritllm.json":
        unsigned = text.replace(json.loads(path.read_text())["sha256"], "0" * 64)
        text = unsigned.replace("0" * 64, hashlib.sha256(unsigned.encode()).hexdigest(), 1)
    path.write_text(text)
    with pytest.raises(FormatError) as raised:
        PackedCheckpoint(packed)
    assert file in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("encoder", [None, [], "text", 3])
def test_an_encoder_that_is_no_object(packed, encoder):
    put(packed, encoder=encoder)
    with pytest.raises(FormatError, match=r"tritllm\.json: \$\.encoder"):
        verify(packed)


def test_what_is_written_today_has_no_such_field(packed):
    assert "encoder" not in json.loads((packed / "tritllm.json").read_text())
    config = json.loads((packed / "config.json").read_text())
    assert "encoder" not in config["quantization_config"]
