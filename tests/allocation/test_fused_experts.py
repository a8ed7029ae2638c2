"""Mixed depth over experts that a source holds in one tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support.calibrated import plan_of
from support.fused_models import write_apart_and_fused, write_mixture
from support.tiny_text import write_text

from tritllm import PackedCheckpoint, quantize, verify
from tritllm.allocation.groups import find_groups
from tritllm.allocation.measure import measure
from tritllm.allocation.measured_model import FLOAT, MeasuredModel
from tritllm.allocation.sensitivities import Basis, Sensitivities
from tritllm.codec import encode

LAYER = "model.layers.1"


@pytest.mark.parametrize("family", ["gpt_oss", "llama4"])
def test_experts_take_depths_in_a_float_model(family, tmp_path):
    source = write_mixture(tmp_path / "source", family)
    plan = plan_of(source)
    groups = {group.name: group for group in find_groups(plan.quantized)}
    ends = (".1.mlp.experts.down", ".1.feed_forward.experts.down")
    down = next(group for name, group in groups.items() if name.endswith(ends))
    assert any(name == down.name.replace("down", "gate_up") for name in groups)
    held = [m.module for m in plan.quantized if m.source == down.matrices[0].source]
    assert down.modules == held
    model = MeasuredModel(plan, threads=1)
    sample = model.sample(torch.randint(3, 90, (2, 16)).numpy())
    assert all(model.holds(module) for module in down.modules)
    assert model.divergence(sample, 0) < 1e-6
    model.set_depths(dict.fromkeys(down.modules, 1))
    first = model.first_block([down])
    assert first == 1
    assert model.divergence(sample, first) > 1e-5
    stored = load_file(source / "model.safetensors")[down.matrices[0].source.name]
    for number, module in enumerate(down.modules):
        weight = np.ascontiguousarray(stored[number].T)
        wanted = encode(weight, 1, "v3").decode()
        found = model.model.get_parameter(f"{module}.weight").numpy()
        np.testing.assert_array_equal(found, wanted)
    model.set_depths(dict.fromkeys(down.modules, FLOAT))
    assert model.divergence(sample, first) < 1e-6


def test_fused_and_single_experts_cost_the_same(tmp_path):
    ids = np.random.default_rng(1).integers(3, 90, (1, 16))
    found = []
    for source in write_apart_and_fused(tmp_path, "qwen3_moe"):
        plan = plan_of(source)
        groups = [g for g in find_groups(plan.quantized) if g.name.startswith(f"{LAYER}.mlp")]
        assert {g.name for g in groups} == {f"{LAYER}.mlp.experts.{k}" for k in ("gate_up", "down")}
        model = MeasuredModel(plan, threads=1)
        known = Sensitivities(Basis(source.name, "", None, 16, 16, 0, "v3"))
        measure(model, model.sample(ids), groups, known, None)
        assert all(kl[0] > kl[2] > 0 for kl in known.kl.values())
        found.append((known.kl, {name: sorted(m) for name, m in known.modules.items()}))
    assert found[0] == found[1]


def test_a_file_of_mixed_depth_is_calibrated_at_its_depths(tmp_path):
    source = write_mixture(tmp_path / "source", "gpt_oss")
    text = tmp_path / "text.txt"
    write_text(text, letters=260)
    (report,) = quantize(
        str(source), ["target-3bpw"], tmp_path / "out", calibrate=text, context=32,
        write=["packed"], depth=["*self_attn*=2"], threads=1,
    )  # fmt: skip
    depths = report["allocation"]["depths"]
    assert set(depths) == {
        f"model.layers.{n}.mlp.experts.{kind}" for n in (0, 1) for kind in ("gate_up", "down")
    }
    assert len(set(depths.values())) > 1
    verify(tmp_path / "out/target-3bpw/packed", source=source)
    checkpoint = PackedCheckpoint(tmp_path / "out/target-3bpw/packed")
    for layer in (0, 1):
        for expert in range(4):
            prefix = f"model.layers.{layer}.mlp.experts"
            for leaf, kind in (("gate_proj", "gate_up"), ("down_proj", "down")):
                depth = checkpoint.tensor(f"{prefix}.{expert}.{leaf}.weight").depth
                assert depth == depths[f"{prefix}.{kind}"]
    assert report["encoder"]["calibrated"] > 8
