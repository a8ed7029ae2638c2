"""save_pretrained and dequantize: the very tensors that were loaded."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_models import FAMILIES, logits, write_tiny
from transformers import AutoModel, AutoModelForCausalLM

from tritllm import FormatError, PackedCheckpoint, verify
from tritllm.integrations.transformers import TritConfig, load_model
from tritllm.integrations.transformers.layers import float_weight
from tritllm.publish.card import card
from tritllm.run.info import info


def tensors(folder) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_is_what_was_loaded(tiny, tmp_path, family):
    """With prepared memory where there are native kernels, which must not be saved."""
    packed = tiny(family, 3) / "packed"
    model = load_model(packed)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same(tensors(tmp_path), tensors(packed))
    stored, saved = (
        json.loads((folder / "config.json").read_text())["quantization_config"]
        for folder in (packed, tmp_path)
    )
    assert saved == stored
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits(again), logits(model))


def test_what_is_saved_has_no_manifest_and_every_command_says_so(tiny, tmp_path):
    load_model(tiny("llama", 3) / "packed").save_pretrained(tmp_path)
    for function in (verify, info, card, PackedCheckpoint):
        with pytest.raises(FormatError) as caught:
            function(str(tmp_path))
        assert str(caught.value) == (
            f"{tmp_path}: packed, but without tritllm.json: saved by transformers, or incomplete; "
            "what it holds cannot be proven, use the folder that tritllm quantize wrote"
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_dequantized_is_the_model_folder(tiny, tmp_path, family):
    folder = tiny(family, 3)
    model = load_model(folder / "packed")
    model.dequantize()
    assert not hasattr(model.config, "quantization_config")
    model.save_pretrained(tmp_path)
    assert_same(tensors(tmp_path), tensors(folder / "model"))
    assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(tmp_path)))


def test_dequantize_after_saving_and_to_another_dtype(tiny, tmp_path):
    model = load_model(tiny("qwen2", 3) / "packed", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    layer = model.model.layers[0].mlp.up_proj
    expected = torch.from_numpy(layer.tensor().decode()).bfloat16()
    model.dequantize()
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, expected)


def test_fewer_planes_are_saved_as_a_shallower_model(tiny, tmp_path):
    model = load_model(tiny("llama", 3) / "packed", planes=2)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert stored["depth"] == 2
    assert "planes" not in stored
    full = tensors(tiny("llama", 3) / "packed")
    for name, tensor in tensors(tmp_path).items():
        cut = (tensor.dtype == torch.uint8 and tensor.ndim == 3) or name.endswith("_codebook")
        assert torch.equal(tensor, full[name][:2] if cut else full[name]), name
    assert torch.equal(logits(load_model(tmp_path)), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_lm_head_depth(tiny, tmp_path, torch_only, family):
    packed = tiny(family, 3) / "packed"
    model = load_model(packed, lm_head_depth=4)
    head = model.get_output_embeddings()
    assert head.depth == 4
    plain = load_model(packed)
    expected = plain.get_output_embeddings().weight
    assert (float_weight(head, torch.float32) - expected).norm() < 0.03 * expected.norm()
    assert torch.equal(model.get_input_embeddings().weight, plain.get_input_embeddings().weight)
    model.save_pretrained(tmp_path)
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert again.config.quantization_config.lm_head_depth == 4
    assert torch.equal(logits(again), logits(model))
    base = AutoModel.from_pretrained(tmp_path)  # which has no head
    assert base.config.quantization_config.lm_head_depth == 4
    coarse = load_model(tmp_path, planes=1)
    assert coarse.get_output_embeddings().depth == 4
    again.dequantize()
    again.save_pretrained(tmp_path / "dequantized")
    last = AutoModelForCausalLM.from_pretrained(tmp_path / "dequantized")
    assert torch.equal(last.get_output_embeddings().weight, float_weight(head, torch.float16))


# --- On the fly -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["auto", torch.bfloat16], ids=str)
def test_on_the_fly_is_what_the_quantizer_writes(tiny, family, dtype):
    folder = tiny(family, 3)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder.parent.parent / "source",
        quantization_config=TritConfig(depth=3),
        dtype=dtype,
        output_loading_info=True,
    )
    assert not any(info.values())
    expected = load_model(folder / "packed", dtype=dtype)
    assert_same(model.state_dict(), expected.state_dict())
    assert torch.equal(logits(model), logits(expected))


@pytest.mark.parametrize("family", ["gpt2", "qwen3_moe"])
def test_on_the_fly_saves_the_same_files(tiny, tmp_path, family):
    folder = tiny(family, 3)
    model = AutoModelForCausalLM.from_pretrained(
        folder.parent.parent / "source", quantization_config=TritConfig(depth=3)
    )
    model.save_pretrained(tmp_path)
    assert_same(tensors(tmp_path), tensors(folder / "packed"))
    stored, saved = (
        json.loads((place / "config.json").read_text())["quantization_config"]
        for place in (folder / "packed", tmp_path)
    )
    assert saved.keys() == stored.keys()
    assert {saved[key] == stored[key] for key in saved if key != "modules_to_not_convert"} == {True}
    assert torch.equal(logits(load_model(tmp_path)), logits(model))


def test_on_the_fly_by_module_and_with_exceptions(tmp_path):
    source = write_tiny(tmp_path / "source", "llama")
    depths = {"model.layers.0.mlp.up_proj": 1, "model.layers.1.mlp.up_proj": 4}
    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=TritConfig(depth=depths)
    )
    assert [layer.mlp.up_proj.depth for layer in model.model.layers] == [1, 4]
    assert model.model.layers[0].mlp.down_proj.weight.dtype == torch.float16
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(load_model(tmp_path / "saved")), logits(model))

    model = AutoModelForCausalLM.from_pretrained(
        source,
        quantization_config=TritConfig(depth=2, modules_to_not_convert=["model.layers.1"]),
        dtype=torch.bfloat16,
    )
    assert model.model.layers[0].mlp.up_proj.depth == 2
    assert model.model.layers[1].mlp.up_proj.weight.dtype == torch.bfloat16
    assert logits(model).isfinite().all()


def test_module_globs_on_the_fly(tmp_path):
    source = write_tiny(tmp_path / "source", "llama")
    config = TritConfig(
        depth={"*": 2, "*.mlp.*": 3, "model.layers.0.mlp.up_proj": 4},
        modules_to_not_convert=["*.layers.1.mlp.*", "model.layers.0.self_attn.k_proj.weight"],
    )
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=config)
    first, second = model.model.layers
    assert (first.mlp.up_proj.depth, first.mlp.down_proj.depth) == (4, 3)
    assert (first.self_attn.q_proj.depth, second.self_attn.k_proj.depth) == (2, 2)
    for kept in (second.mlp.up_proj, first.self_attn.k_proj):
        assert type(kept) is torch.nn.Linear
    model.save_pretrained(tmp_path / "saved")
    stored = json.loads((tmp_path / "saved/config.json").read_text())["quantization_config"]
    assert stored["depth"]["model.layers.0.mlp.up_proj"] == 4
    assert "model.layers.1.mlp.up_proj" in stored["modules_to_not_convert"]
    assert torch.equal(logits(load_model(tmp_path / "saved")), logits(model))
