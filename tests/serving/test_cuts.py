"""How layers are cut, by name: as vLLM's classes and as transformers' own plans have it."""

from __future__ import annotations

import numpy as np
import pytest
import transformers
from support.family_models import MODELS

from tritllm.format.safetensors_header import TensorEntry
from tritllm.serving.cuts import COLUMNS, HEADS, ROWS, WHOLE, cut_of
from tritllm.serving.weights import degree_parts, parts_of_source

# Of vLLM 0.32: what its models build each layer of.
VLLM = {
    COLUMNS: (
        "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.experts.3.down_proj",
        "model.layers.0.block_sparse_moe.experts.0.w2", "model.layers.0.self_attn.dense",
        "gpt_neox.layers.0.attention.dense", "transformer.h.0.self_attention.dense",
        "gpt_neox.layers.0.mlp.dense_4h_to_h", "model.layers.0.mlp.fc2", "decoder.layers.0.fc2",
        "model.decoder.layers.0.self_attn.out_proj", "transformer.h.0.mlp.fc_out",
        "transformer.h.0.attn.c_proj", "backbone.layers.0.mixer.x_proj",
        "model.layers.0.shared_mlp.output_linear", "bert.encoder.layer.0.output.dense",
        "bert.encoder.layer.0.attention.output.dense", "layers.0.attn.Wo", "layers.0.mlp.Wo",
        "model.visual.blocks.0.attn.proj", "model.visual.merger.mlp.2",
        "decoder.block.0.layer.1.EncDecAttention.o", "decoder.block.0.layer.2.DenseReluDense.wo",
        "model.multi_modal_projector.linear_2", "transformer.layer.0.ffn.lin2", "o_proj",
    ),
    ROWS: (
        "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.kv_b_proj",
        "model.layers.0.mlp.gate_up_proj", "bert.encoder.layer.0.intermediate.dense",
        "gpt_neox.layers.0.mlp.dense_h_to_4h", "decoder.layers.0.fc1", "backbone.proj.in_proj",
        "transformer.h.0.mlp.c_fc", "model.multi_modal_projector.linear_1",
        "model.layers.0.block_sparse_moe.experts.0.w1", "encoder.layer.0.attention.self.query",
        "decoder.block.0.layer.2.DenseReluDense.wi_0",
    ),
    HEADS: ("model.layers.0.self_attn.k_proj", "layers.0.self_attn.v_proj"),
    WHOLE: (
        "model.layers.0.self_attn.q_a_proj", "model.layers.0.self_attn.kv_a_proj_with_mqa",
        "model.decoder.project_in", "bert.pooler.dense", "model.layers.0.mlp.shared_expert_gate",
    ),
}  # fmt: skip


@pytest.mark.parametrize("cut", VLLM)
def test_layers_are_cut_as_vllms_are(cut):
    assert {name: cut_of(name) for name in VLLM[cut]} == dict.fromkeys(VLLM[cut], cut)


def plans() -> dict[str, str]:
    """By module, how transformers' own plans cut it; of all families that have one."""
    found = {}
    for family in MODELS.values():
        config = getattr(transformers, family.config)
        texts = [kind for name, kind in config.sub_configs.items() if "text" in name]
        for kind in (config, *texts):
            for module, how in (getattr(kind, "base_model_tp_plan", None) or {}).items():
                if how.startswith(("rowwise", "colwise")):
                    found[module.replace("*", "0")] = how
    return found


def test_layers_are_cut_as_transformers_plans_have_it():
    known = plans()
    assert len(known) > 30
    for module, how in known.items():
        # Of linear attention every rank has all in transformers; fused experts may be [in, out].
        if "linear_attn" in module or ".experts." in module:
            continue
        assert (cut_of(module) == COLUMNS) == how.startswith("rowwise"), module


def test_a_matrix_on_every_rank_counts_there_and_decides_no_degree():
    shapes = {"self_attn.kv_a_proj_with_mqa": (33, 64), "mlp.down_proj": (64, 128)}
    entries = [
        TensorEntry(f"model.layers.0.{name}.weight", "BF16", shape, 0, 2 * int(np.prod(shape)))
        for name, shape in shapes.items()
    ]
    parts = parts_of_source(entries, "deepseek_v2")
    assert parts.gpu_bytes(None, 4, 1, None) == 2 * (33 * 64 + 64 * 128 // 4)
    assert degree_parts(parts, {}, 2).reason.startswith("down_proj: 128 columns")
