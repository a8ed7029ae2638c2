"""The rules for readers: what breaks the format is refused with one line."""

from __future__ import annotations

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_models import write_tiny
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, MambaConfig

from tritllm import quantize
from tritllm.errors import FormatError, SourceError, TritError
from tritllm.integrations.transformers import TritConfig, load_model
from tritllm.integrations.transformers.quantizer import TritQuantizer

NAME = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def broken(tiny, tmp_path, torch_only):
    """broken(change): the folder with its tensors changed; without a manifest unless asked."""

    def make(change, manifest: bool = False):
        folder = tmp_path / "broken"
        shutil.copytree(tiny("llama", 2) / "packed", folder)
        if not manifest:
            (folder / "tritllm.json").unlink()
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


def refusal(folder) -> str:
    with pytest.raises(TritError) as caught:
        AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(caught.value, FormatError)
    message = str(caught.value)
    assert "\n" not in message
    return message


def drop(suffix: str):
    return lambda tensors: tensors.pop(NAME + suffix)


def change(suffix: str, function):
    def apply(tensors):
        tensors[NAME + suffix] = function(tensors[NAME + suffix].clone())

    return apply


def set_item(index, value):
    def apply(tensor):
        tensor[index] = value
        return tensor

    return apply


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (drop("_scale"), f"tensor {NAME}_scale is missing"),
        (drop("_codebook"), f"tensor {NAME}_codebook is missing"),
        (drop(""), f"tensor {NAME} is missing"),
        (change("", set_item((1, 3, 2), 243)), f"tensor {NAME}: byte 243 is not five trits"),
        (change("_scale", set_item((0, 0), 255)), f"tensor {NAME}_scale: byte 255"),
        (change("", set_item((0, 0, -1), 0)), "padding after trit 72 of a row is not zero"),
        (change("_codebook", set_item((1, 26), torch.inf)), "codebook holds a value that is not"),
        (change("_codebook", lambda c: c.flip(1)), "codebook is not ascending"),
        (change("", lambda w: w[:, :-1].contiguous()), "expected U8 [2, 48, 15]"),
        (change("_codebook", lambda c: c[:1].contiguous()), "expected F32 [2, 27]"),
        (change("", lambda w: w[0].contiguous()), "expected [d, N, ceil(K/5)]"),
        (change("_codebook", lambda c: c.double()), "expected F32 [2, 27]"),
    ],
)
def test_broken_tensors(broken, damage, says):
    message = refusal(broken(damage))
    assert says in message
    assert "model.safetensors" in message


def test_the_kernels_check_bytes_too(broken, native):
    native("int8")
    message = refusal(broken(change("", set_item((1, 3, 2), 243))))
    assert f"tensor {NAME}: byte 243" in message


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda t: t.update({"extra.weight": torch.zeros(2)}), "extra.weight is not in the manif"),
        (lambda t: t.pop("model.norm.weight"), "tensor model.norm.weight is missing"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(2)}), "F32 [2], the manifest says"),
    ],
)
def test_a_manifest_that_is_there_must_agree(broken, damage, says):
    assert says in refusal(broken(damage, True))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"format_version": 2, "tensors": {}}', "format version 2 is newer"),
        ("[]", "not a JSON object"),
    ],
)
def test_a_manifest_that_cannot_be_read(broken, text, says):
    folder = broken(lambda tensors: None)
    (folder / "tritllm.json").write_text(text)
    assert says in refusal(folder)


def test_a_packed_embedding_is_no_linear_layer(broken):
    def rename(tensors):
        for suffix in ("", "_scale", "_codebook"):
            tensors[f"model.embed_tokens.weight{suffix}"] = tensors[NAME + suffix].clone()

    assert "Embedding is not a linear layer" in refusal(broken(rename))


def test_versions_and_group_sizes(broken):
    folder = broken(lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    for key, value, says in (
        ("format_version", 2, "format version 2 is newer than 1; upgrade tritllm"),
        ("group_size", 32, "group_size 32 is not 16"),
    ):
        changed = config["quantization_config"] | {key: value}
        text = json.dumps(config | {"quantization_config": changed})
        (folder / "config.json").write_text(text)
        assert says in refusal(folder)


def test_a_depth_without_its_tensor(broken):
    folder = broken(lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["depth"] = {"model.layers.7.mlp.up_proj": 2}
    (folder / "config.json").write_text(json.dumps(config))
    assert "model.layers.7.mlp.up_proj.weight_codebook is missing" in refusal(folder)


def test_a_truncated_file(broken):
    folder = broken(lambda tensors: None)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors" in refusal(folder)


@pytest.mark.parametrize("manifest", [False, True])
def test_a_missing_or_empty_shard(tmp_path, manifest):
    source = write_tiny(tmp_path / "whole", "llama")
    model = AutoModelForCausalLM.from_pretrained(source)
    model.save_pretrained(tmp_path / "source", max_shard_size="60KB")
    quantize(str(tmp_path / "source"), ["uniform-d2"], tmp_path / "out")
    folder = tmp_path / "out/uniform-d2/packed"
    if not manifest:
        (folder / "tritllm.json").unlink()
    shard = sorted(folder.glob("*.safetensors"))[-1]
    shard.write_bytes(b"")
    assert f"{shard.name}: 0 bytes is too short" in refusal(folder)
    shard.unlink()
    assert f"{shard.name}: missing" in refusal(folder)


def test_a_config_that_says_nothing_of_packing(broken):
    """transformers' own from_pretrained meets float layers then, and refuses; in many lines."""
    folder = broken(lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TritError, match="is not a packed model"):
        load_model(folder)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depth": 5}, "depth 5 is not 1..4"),
        ({"depth": {"a": 0}}, "depth 0 is not 1..4"),
        ({"depth": True}, "depth True is not 1..4"),
        ({"depth": 2.0}, "depth 2.0 is not 1..4"),
        ({"planes": 9}, "planes 9 is not 1..4"),
        ({"lm_head_depth": -1}, "lm_head_depth -1 is not 1..4"),
        ({"codec": 3}, "codec 3 is not text"),
        ({"encoder": "gptq"}, "encoder is not an object"),
        ({"verify": 1}, "verify 1 is neither True nor False"),
        ({"modules_to_not_convert": "lm_head"}, "'lm_head' is not a list of module names"),
        ({"quant_method": "awq"}, "quant_method 'awq' is not 'tritllm'"),
        ({"plnaes": 1}, "unknown field 'plnaes'; did you mean planes?"),
        ({"bits": 4, "depth": 2}, "unknown field 'bits'; known: depth, codec, encoder, planes,"),
        ({"x" * 300: 4}, "unknown field '" + "x" * 40 + "'"),
    ],
)
def test_config_values(options, says):
    with pytest.raises(TritError, match=re.escape(says)) as caught:
        TritConfig(**options)
    assert len(str(caught.value)) < 300


def test_what_others_say_in_a_config_is_carried(broken, tmp_path):
    """An encoder that this version does not know, and transformers' own marks."""
    folder = broken(lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    encoder = {"text": "sha256:ab", "tokens": 80000, "nested": {"seeds": [1, 2], "lr": None}}
    config["quantization_config"] |= {"codec": "v4-calibrated", "encoder": encoder, "_mark": 1}
    (folder / "config.json").write_text(json.dumps(config))
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved/config.json").read_text())["quantization_config"]
    del config["quantization_config"]["_mark"]
    assert saved == config["quantization_config"]


@pytest.mark.parametrize("pairs", [{"plnaes": 1}, {"bits": 4}])
def test_an_unknown_field_in_a_file_is_refused(broken, pairs):
    folder = broken(lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= pairs
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TritError, match=f"unknown field '{next(iter(pairs))}'"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give TritConfig a depth"),
        ({"depth": 2, "codec": "v4"}, "codec 'v4' must be one of v2, v3"),
        ({"depth": 2, "planes": 1}, "planes are of a packed model"),
        ({"depth": 2, "verify": True}, "a float model has no manifest"),
        ({"depth": 2, "modules_to_not_convert": ["model.layer.0"]}, "'model.layer.0', which is no"),
        ({"depth": {"model.layers.7.mlp.up_proj": 2}}, "depth names 'model.layers.7.mlp.up_proj'"),
        ({"depth": 2, "modules_to_not_convert": ["model"]}, "no linear weight recognised"),
    ],
)
def test_on_the_fly_configs(tmp_path, options, says):
    source = write_tiny(tmp_path / "source", "llama")
    with pytest.raises(TritError, match=re.escape(says)):
        AutoModelForCausalLM.from_pretrained(source, quantization_config=TritConfig(**options))


def test_on_the_fly_needs_finite_weights(tmp_path):
    source = write_tiny(tmp_path / "source", "llama")
    tensors = load_file(source / "model.safetensors")
    tensors[NAME][3, 5] = torch.nan
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=rf"tensor {NAME}: weight\[3, 5\] is nan"):
        AutoModelForCausalLM.from_pretrained(source, quantization_config=TritConfig(depth=2))


def test_tensors_without_files(tiny):
    packed = tiny("llama", 2) / "packed"
    with pytest.raises(TritError, match="loaded from safetensors files"):
        LlamaForCausalLM.from_pretrained(
            None,
            config=AutoConfig.from_pretrained(packed),
            state_dict=load_file(packed / "model.safetensors"),
        )


@pytest.fixture
def mamba(tmp_path):
    """A packed Mamba, whose code multiplies by dt_proj.weight."""
    config = MambaConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=1, state_size=8, bos_token_id=1,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "source")
    quantize(str(tmp_path / "source"), ["uniform-d2"], tmp_path / "out")
    return tmp_path / "out/uniform-d2/packed"


def test_a_stored_layer_that_the_model_reads_is_refused(mamba):
    (mamba / "tritllm.json").unlink()
    tensors = load_file(mamba / "model.safetensors")
    mixer = "backbone.layers.0.mixer"
    for suffix in ("", "_scale", "_codebook"):
        tensors[f"{mixer}.dt_proj.weight{suffix}"] = tensors[
            f"{mixer}.in_proj.weight{suffix}"
        ].clone()
    save_file(tensors, mamba / "model.safetensors", {"format": "pt"})
    assert "dt_proj.weight: a weight that mamba models do not use" in refusal(mamba)


@pytest.mark.parametrize("model", [
    SimpleNamespace(config=SimpleNamespace(distributed_config={"tp_size": 2})),
    SimpleNamespace(config=SimpleNamespace(), _tp_size=2),
])  # fmt: skip
def test_transformers_own_tensor_parallelism_is_refused(model):
    """It cut the packed bytes of a mixture without an error, and gave other logits."""
    quantizer = TritQuantizer(TritConfig())
    with pytest.raises(TritError, match=r"cannot cut packed weights; .*vLLM") as caught:
        quantizer._process_model_before_weight_loading(model)
    assert "\n" not in str(caught.value)


def test_the_meta_device_is_refused(tiny):
    with pytest.raises(TritError, match="cannot be loaded onto meta"):
        AutoModelForCausalLM.from_pretrained(tiny("llama", 2) / "packed", device_map={"": "meta"})
