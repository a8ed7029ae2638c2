"""Which matrices are tied, and that bits are those of the written file."""

import pytest
from support.calibrated import plan_of
from support.model_folders import write_family
from support.tiny_models import write_tiny

from tritllm import quantize
from tritllm.allocation.groups import bits_per_weight, find_groups


def names(folder):
    return {
        g.name: [m.rpartition(".")[2] for m in g.modules]
        for g in find_groups(plan_of(folder).quantized)
    }


def test_llama(tmp_path):
    found = names(write_family(tmp_path / "m"))
    assert found["model.layers.0.self_attn.qkv"] == ["q_proj", "k_proj", "v_proj"]
    assert found["model.layers.0.mlp.gate_up"] == ["gate_proj", "up_proj"]
    assert found["model.layers.1.mlp.down_proj"] == ["down_proj"]
    assert found["model.layers.1.self_attn.o_proj"] == ["o_proj"]
    assert len(found) == 8


@pytest.mark.parametrize(
    ("family", "name", "members"),
    [
        ("qwen3_moe", "model.layers.1.mlp.experts.gate_up", 6),
        ("qwen3_moe", "model.layers.1.mlp.experts.down", 3),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.gate_up", 4),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.down", 2),
        ("phi3", "model.layers.0.self_attn.qkv_proj", 1),
        ("phi3", "model.layers.0.mlp.gate_up_proj", 1),
        ("bert", "bert.encoder.layer.0.attention.self.qkv", 3),
        ("bert", "bert.encoder.layer.0.attention.output.dense", 1),
        ("gpt2", "transformer.h.0.attn.c_attn", 1),
    ],
)
def test_other_families(tmp_path, family, name, members):
    found = names(write_family(tmp_path / "m", family))
    assert len(found[name]) == members
    assert sum(map(len, found.values())) == len(plan_of(tmp_path / "m").quantized)


def test_place_and_kind(tmp_path):
    plan = plan_of(write_family(tmp_path / "m"), include=("lm_head",))
    groups = {g.name: g for g in find_groups(plan.quantized)}
    assert groups["model.layers.1.self_attn.qkv"].block == 1
    assert groups["lm_head"].block is None


def test_bits_are_those_of_the_file(tmp_path):
    """The same number as the report's, which counts the bytes of the written tensors."""
    source = write_tiny(tmp_path / "source", "llama")
    plan = plan_of(source)
    groups = find_groups(plan.quantized)
    depths = {g.name: 1 + i % 4 for i, g in enumerate(groups)}
    overrides = [f"{m}={depths[g.name]}" for g in groups for m in g.modules]
    report = quantize(
        str(source), ["uniform-d1"], tmp_path / "out", depth=overrides, write=["packed"], threads=1
    )[0]
    assert bits_per_weight(groups, depths) == pytest.approx(report["bits_per_weight"]["quantized"])
