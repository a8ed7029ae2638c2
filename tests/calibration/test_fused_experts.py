"""Experts that a source holds in one tensor are calibrated one by one, as single ones are."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from support.calibrated import bytes_of, calibrate, plan_of
from support.fused_models import write_apart_and_fused, write_mixture
from support.tiny_models import VOCABULARY
from support.tiny_text import write_text, write_tokenizer

from tritllm.calibration import quantized_pass
from tritllm.calibration.calibrator import TextCalibrator
from tritllm.calibration.windows import windows_of
from tritllm.quantizer import decisions
from tritllm.quantizer.configs import nested_config

CONTEXT = 24


@pytest.mark.parametrize("family", ["gpt_oss", "granitemoehybrid", "llama4", "qwen3_vl_moe"])
def test_every_expert_is_calibrated_and_loses_less(family, tmp_path):
    plan = plan_of(write_mixture(tmp_path / "source", family))
    assert any(matrix.slice_of for matrix in plan.quantized)
    calibrator = TextCalibrator(write_text(tmp_path / "text.txt", 800), context=CONTEXT)
    encodings = calibrate(calibrator, plan, tmp_path / "run")
    (config,) = plan.configs
    notes = encodings.notes(config)
    assert set(notes["matrices"]) == {matrix.name for matrix in plan.quantized}
    assert encodings.encoder(config)["calibrated"] > 0.8 * len(plan.quantized)
    experts = [m.name for m in plan.quantized if m.slice_of and m.name not in notes["data_free"]]
    for name in experts:
        assert notes["matrices"][name]["loss_after"] < 0.9 * notes["matrices"][name]["loss_before"]


def test_fused_and_single_experts_give_equal_bits(tmp_path):
    """Also where some experts see too few tokens, with the same ones listed."""
    text, results, listed = write_text(tmp_path / "text.txt"), [], []
    for source in write_apart_and_fused(tmp_path, "qwen3_moe"):
        plan = plan_of(source, ["uniform-d1", "uniform-d2"])
        calibrator = TextCalibrator(text, tokens=28, context=14)
        encodings = calibrate(calibrator, plan, tmp_path / f"run-{source.name}")
        results.append(bytes_of(encodings, plan))
        listed.append([encodings.notes(config)["data_free"] for config in plan.configs])
        assert any(matrix.slice_of for matrix in plan.quantized) == (source.name == "fused")
    assert results[0] == results[1]
    assert listed[0] == listed[1]
    assert all(0 < len(names) < len(plan.quantized) for names in listed[0])


def test_a_nested_run_that_is_killed_within_a_mixture_goes_on_to_the_same_bytes(tmp_path):
    plan = plan_of(write_mixture(tmp_path / "source", "gpt_oss"), exclude=["*self_attn*"])
    plan = replace(plan, configs=(nested_config((2, 3)),))
    calibrator = TextCalibrator(write_text(tmp_path / "text.txt", 300), context=CONTEXT)
    whole = bytes_of(calibrate(calibrator, plan, tmp_path / "whole"), plan)

    class Killed(BaseException):
        """Nothing of tritllm catches this."""

    def stop(progress):
        if progress.where.startswith("block 2 of 2, mlp.experts.1.down_proj"):
            raise Killed

    (tmp_path / "killed").mkdir()
    with pytest.raises(Killed):
        calibrator.run(plan, tmp_path / "killed", 1, stop)
    assert bytes_of(calibrate(calibrator, plan, tmp_path / "killed"), plan) == whole


def moments_of_experts(plan, calibrator, folder, monkeypatch):
    """By module, the second moments with which it was encoded."""
    found, encode_stage = {}, quantized_pass.encode_stage

    def spy(part, modules, moments, *rest):
        if moments is not None:
            lower = torch.tril(moments._hessian)
            found[f"{part.name}.{modules[0]}"] = lower.numpy()
        return encode_stage(part, modules, moments, *rest)

    monkeypatch.setattr(quantized_pass, "encode_stage", spy)
    calibrate(calibrator, plan, folder)
    return found


def check_moments(found, rows_of):
    """rows_of: by module, batches of what transformers' own code computed as its inputs."""
    assert found.keys() == rows_of.keys()
    for module, rows in rows_of.items():
        x = torch.cat(rows).double().numpy()
        wanted = np.tril(x.T @ x)
        np.testing.assert_allclose(found[module], wanted, atol=1e-4 * wanted.max())


def float_model(source, calibrator):
    ids, _ = windows_of(source, calibrator.text, None, CONTEXT, 0)
    where = source.files.folder
    model = transformers.AutoModelForCausalLM.from_pretrained(where, dtype="float32")
    model.set_experts_implementation("eager")
    return model, torch.from_numpy(np.asarray(ids, np.int64))


def test_down_projections_see_what_the_biased_gate_gives(tmp_path, monkeypatch):
    """gpt-oss: nothing else is quantized, so inputs are those of the float model."""
    monkeypatch.setattr(decisions, "check_blocks", lambda *_: None)  # could not run packed
    keep = ["*self_attn*", "*gate_up_proj", "model.layers.1.*"]
    plan = plan_of(write_mixture(tmp_path / "source", "gpt_oss"), exclude=keep)
    calibrator = TextCalibrator(write_text(tmp_path / "text.txt"), context=CONTEXT)
    model, ids = float_model(plan.source, calibrator)
    mixture = model.model.layers[0].mlp
    index, gated, rows = [], [], defaultdict(list)
    mixture.router.register_forward_hook(lambda _m, _a, out: index.append(out[2]))
    gate = mixture.experts._apply_gate
    mixture.experts._apply_gate = lambda both: gated.append(gate(both)) or gated[-1]
    with torch.no_grad():
        model(ids)
    for expert, values in zip(index[0].unique().tolist(), gated, strict=True):
        rows[f"model.layers.0.mlp.experts.{expert}.down_proj"].append(values)
    check_moments(moments_of_experts(plan, calibrator, tmp_path / "run", monkeypatch), rows)


def write_llama4(folder):
    torch.manual_seed(0)
    config = transformers.Llama4TextConfig(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=40, intermediate_size_mlp=56,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=12,
        num_local_experts=4, num_experts_per_tok=2, interleave_moe_layer_step=2,
        max_position_embeddings=128,
    )  # fmt: skip
    model = transformers.Llama4ForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.1)
    model.half().save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def test_experts_that_are_given_scaled_tokens_are_calibrated_on_these(tmp_path, monkeypatch):
    """Llama 4, two experts a token: each gets the hidden states times its own score."""
    source = write_llama4(tmp_path / "source")
    keep = ["*self_attn*", "*shared_expert*", "*layers.0.*"]
    plan = plan_of(source, exclude=keep)
    calibrator = TextCalibrator(write_text(tmp_path / "text.txt"), context=CONTEXT)
    model, ids = float_model(plan.source, calibrator)
    rows = defaultdict(list)
    name = "model.layers.1.feed_forward.experts"

    def take(module, args):
        for expert, mine in enumerate(args[0].view(module.num_experts, -1, args[0].shape[-1])):
            rows[f"{name}.{expert}.gate_proj"].append(mine)

    model.get_submodule(name).register_forward_pre_hook(take)
    with torch.no_grad():
        model(ids)
    found = moments_of_experts(plan, calibrator, tmp_path / "run", monkeypatch)
    first = {module: each for module, each in found.items() if module.endswith("gate_proj")}
    check_moments(first, rows)
