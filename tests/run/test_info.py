"""What `info` tells of a folder: right where the files say it, absent where they do not."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from support.model_folders import (
    llama,
    random_tensors,
    safetensors_bytes,
    split,
    write_family,
    write_model,
)

from tritllm import FormatError, TritError, quantize
from tritllm.run.info import info

PARAMETERS = sum(int(np.prod(shape)) for shape, _ in llama().values())
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 4096,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 40,
}


@pytest.fixture
def source(tmp_path):
    return write_model(tmp_path / "source", CONFIG, split(random_tensors(llama(), np.float32), 2))


def test_a_plain_source(source):
    facts = info(str(source))
    assert facts.architecture == "LlamaForCausalLM"
    assert facts.parameters == PARAMETERS
    assert facts.dtypes == {"F32": PARAMETERS}
    assert facts.context_length == 4096
    assert facts.licence.id == "unknown"
    assert facts.base_model is None
    assert facts.depths == {}
    assert facts.file_bits == 32
    assert facts.weight_bytes == 4 * PARAMETERS
    assert facts.float_bytes == 2 * PARAMETERS
    assert facts.cache_bytes_per_token == 2 * 2 * 2 * 10 * 2  # keys, values; layers; heads; bytes


def test_a_packed_folder(source, tmp_path):
    (report,) = quantize(str(source), ["uniform-d3"], tmp_path / "out")
    facts = info(str(tmp_path / "out/uniform-d3/packed"))
    assert facts.parameters == PARAMETERS
    assert facts.depths == {3: report["quantized_parameters"]}
    assert facts.information_bits == pytest.approx((3 + 3 / 16) * np.log2(3))
    assert facts.file_bits == pytest.approx(report["bits_per_weight"]["quantized"])
    assert facts.sqnr_mean_db == pytest.approx(report["sqnr_db"]["mean"])
    assert facts.codec == "v3"
    assert facts.weight_bytes == report["packed_bytes"]


def test_a_packed_folder_without_its_manifest(source, tmp_path):
    quantize(str(source), ["uniform-d1"], tmp_path / "out")
    packed = tmp_path / "out/uniform-d1/packed"
    (packed / "tritllm.json").unlink()
    with pytest.raises(FormatError, match=r"packed, but without tritllm\.json: saved by transform"):
        info(str(packed))


def test_the_model_folder_is_a_plain_one(source, tmp_path):
    quantize(str(source), ["uniform-d3"], tmp_path / "out")
    facts = info(str(tmp_path / "out/uniform-d3/model"))
    assert facts.depths == {}
    assert facts.dtypes == {"F16": PARAMETERS}


def test_the_text_part_of_a_larger_config(tmp_path):
    config = {"model_type": "gemma3", "text_config": CONFIG, "max_position_embeddings": 1}
    source = write_model(tmp_path / "source", config, [random_tensors(llama())])
    assert info(str(source)).context_length == 4096


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"max_position_embeddings": "many", "num_hidden_layers": [2]},
        {"num_hidden_layers": 2, "num_attention_heads": 0, "hidden_size": 8},
        {"num_hidden_layers": 2, "num_attention_heads": "4", "hidden_size": 8},
        {"text_config": 5, "architectures": 3},
    ],
)
def test_a_config_that_says_nothing_of_use(tmp_path, config):
    source = write_model(tmp_path / "source", config, [random_tensors(llama())])
    facts = info(str(source))
    assert facts.context_length is None
    assert facts.cache_bytes_per_token is None
    assert facts.architecture == "unknown"


def test_gpt2_names_its_sizes_otherwise(tmp_path):
    config = {"n_positions": 1024, "n_layer": 3, "n_head": 2, "n_embd": 24}
    facts = info(str(write_family(tmp_path / "source", "gpt2", **config)))
    assert facts.context_length == 1024
    assert facts.cache_bytes_per_token == 2 * 3 * 24 * 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", None),
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b"[" * 100_000),
        ("model.safetensors.index.json", b"{"),
        ("model.safetensors.index.json", b"{}"),
        ("model.safetensors.index.json", b'{"weight_map": 3}'),
        ("model.safetensors.index.json", b'{"weight_map": {"a": 3}}'),
        ("model.safetensors.index.json", b'{"weight_map": {"a": ["b"]}}'),
        ("model-00001-of-00002.safetensors", None),
        ("model-00001-of-00002.safetensors", b"short"),
        ("tritllm.json", b"{}"),
        ("tritllm.json", b"[]"),
        ("tritllm.json", b'{"format_version": 7}'),
    ],
)
def test_a_broken_folder_is_one_line(source, name, content):
    (source / name).unlink(missing_ok=True)
    if content is not None:
        (source / name).write_bytes(content)
    with pytest.raises(TritError) as raised:
        info(str(source))
    assert str(raised.value).isprintable()


def test_weights_that_should_be_there_and_no_folder(tmp_path, source):
    (source / "model.safetensors.index.json").unlink()
    for path in source.glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(TritError, match="safetensors weights missing"):
        info(str(source))
    with pytest.raises(TritError, match="no such folder"):
        info(str(tmp_path / "nowhere"))


def test_a_packed_folder_that_lost_its_weights_is_not_taken_for_a_config(source, tmp_path):
    quantize(str(source), ["uniform-d1"], tmp_path / "out")
    packed = tmp_path / "out/uniform-d1/packed"
    for path in packed.glob("*.safetensors*"):
        path.unlink()
    with pytest.raises(TritError, match="weights missing"):
        info(str(packed))


def test_a_manifest_without_a_tensor_of_its_kind(source, tmp_path):
    quantize(str(source), ["uniform-d1"], tmp_path / "out")
    packed = tmp_path / "out/uniform-d1/packed"
    manifest = json.loads((packed / "tritllm.json").read_text())
    manifest["tensors"] = {n: t for n, t in manifest["tensors"].items() if "kept" in t}
    (packed / "tritllm.json").write_text(json.dumps(manifest))
    with pytest.raises(TritError, match="names no quantized weight"):
        info(str(packed))


def test_a_single_file_of_any_name(tmp_path, source):
    shutil.rmtree(source)
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "other.safetensors").write_bytes(safetensors_bytes({"a": np.ones(3, np.int64)}))
    assert info(str(source)).dtypes == {"I64": 3}
