"""Names of one module that differ: on the Hub and in transformers 5, with and without a prefix."""

from __future__ import annotations

import pytest

from tritllm.format.safetensors_header import TensorEntry
from tritllm.quantizer.decisions import decide
from tritllm.quantizer.kept_weights import EMBEDDING, READ_BY_MODEL, TOWER

LAYER = "layers.0.self_attn.q_proj"
ENCODER = "encoder.layers.0.mlp.fc1"
LINEAR = [
    ("llama", f"model.{LAYER}"),
    ("llama", LAYER),
    ("gemma3", f"language_model.model.{LAYER}"),
    ("gemma3", f"model.language_model.{LAYER}"),
    ("qwen2_vl", f"model.{LAYER}"),
    ("qwen2_vl", f"model.language_model.{LAYER}"),
    ("qwen2_vl", f"language_model.{LAYER}"),
    ("llama4", "language_model.model.layers.0.feed_forward.shared_expert.up_proj"),
    ("deepseek_v3", "model.layers.0.self_attn.kv_a_proj_with_mqa"),
    ("deepseek_v2", f"model.{LAYER}"),  # V2-Lite has no q_a_proj
    ("bloom", "h.0.self_attention.query_key_value"),
    ("falcon", "transformer.h.0.self_attention.query_key_value"),
    ("gpt_neox", "gpt_neox.layers.0.mlp.dense_4h_to_h"),
    ("gpt_neox", "layers.0.attention.dense"),
    ("opt", "model.decoder.layers.0.fc1"),
    ("opt", "decoder.layers.0.self_attn.out_proj"),
    ("whisper", "model.decoder.layers.0.encoder_attn.k_proj"),
    ("t5", "decoder.block.0.layer.1.EncDecAttention.q"),
    ("t5", "transformer.encoder.block.0.layer.1.DenseReluDense.wo"),
    ("mamba", "backbone.layers.0.mixer.x_proj"),
    ("vit", "vit.encoder.layer.0.attention.attention.query"),
    ("vit", "layers.0.attention.q_proj"),
    ("siglip_vision_model", f"vision_model.{ENCODER}"),
    ("siglip_vision_model", ENCODER),
    ("qwen3_next", "model.layers.0.linear_attn.in_proj_qkvz"),
]
OF_TOWER = [
    ("qwen2_vl", "visual.blocks.0.attn.qkv", "*visual*"),
    ("qwen2_5_vl", "model.visual.blocks.0.mlp.gate_proj", "model.visual"),
    ("qwen3_vl", "model.visual.deepstack_merger_list.0.linear_fc1", "*visual*"),
    ("gemma3", f"vision_tower.vision_model.{ENCODER}", "vision_tower"),
    ("gemma3", f"model.vision_tower.{ENCODER}", "*vision_tower*"),
    ("llama4", "vision_model.model.layers.0.mlp.fc1", "vision_model"),
    ("mistral3", "multi_modal_projector.patch_merger.merging_layer", "*projector*"),
]
KEPT = [
    ("qwen2_vl", "visual.patch_embed.proj", (64, 3, 2, 4, 4), EMBEDDING),
    ("qwen2_vl", "visual.blocks.0.norm1", (64,), "norm"),
    ("gemma3", "vision_tower.vision_model.embeddings.position_embedding", (4, 64), EMBEDDING),
    ("siglip", "vision_model.head.attention.out_proj", (64, 64), READ_BY_MODEL),
    ("jamba", "model.layers.0.mamba.dt_proj", (128, 4), READ_BY_MODEL),
    ("whisper", "model.encoder.conv1", (64, 16, 3), "3-D, not recognised"),
    ("t5", "shared", (96, 64), EMBEDDING),
]


def decided(model_type, module, shape=(64, 64), include=()):
    return decide(TensorEntry(f"{module}.weight", "BF16", shape, 0, 0), model_type, include)


@pytest.mark.parametrize(("model_type", "module"), LINEAR)
def test_linear_weights_under_every_name(model_type, module):
    assert decided(model_type, module).reason == "linear weight"
    assert not decided(model_type, f"other.part.{module}").quantize


@pytest.mark.parametrize(("model_type", "module", "glob"), OF_TOWER)
def test_a_tower_is_quantized_on_request(model_type, module, glob):
    assert decided(model_type, module).reason == TOWER
    assert decided(model_type, module, include=["lm_head"]).reason == TOWER
    assert decided(model_type, module, include=[glob]).reason == "included on request"


@pytest.mark.parametrize(("model_type", "module", "shape", "reason"), KEPT)
def test_what_is_no_linear_weight_is_kept(model_type, module, shape, reason):
    assert decided(model_type, module, shape).reason == reason


def test_a_glob_of_a_tower_means_its_linear_weights_alone():
    for model_type, module, shape, reason in KEPT[:3]:
        assert decided(model_type, module, shape, ["*vis*"]).reason == reason
