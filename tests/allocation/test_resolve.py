"""Depths chosen on a tiny model, kept in a file, and refused where they do not belong."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.calibrated import plan_of
from support.tiny_models import write_tiny
from support.tiny_text import write_text, write_tokenizer

from tritllm.allocation import measure as measure_module
from tritllm.allocation.groups import find_groups
from tritllm.allocation.measured_model import FLOAT, MeasuredModel
from tritllm.allocation.resolve import Measuring, resolve
from tritllm.calibration.windows import windows_of
from tritllm.errors import FormatError, TritError

CONTEXT = 16
TARGET = "target-3bpw"
TARGETS = (2.4, 3.0, 4.25, 6.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return model(tmp_path_factory.mktemp("model"), "llama")


def model(folder: Path, family: str) -> Path:
    write_tiny(folder / family, family, torch.float32)
    write_tokenizer(folder / family)
    return folder / family


@pytest.fixture
def measuring(tmp_path) -> Measuring:
    return Measuring(
        write_text(tmp_path / "text.txt"), tmp_path / "s.json", tokens=64, context=CONTEXT
    )


def windows(plan, text, count=4):
    return windows_of(plan.source, text, None, CONTEXT, 0)[0][:count]


def bits(plan, config):
    from tritllm.format.layout import nbytes

    size = sum(nbytes(*m.shape, config.depth_of(m.module)) for m in plan.quantized)
    return 8 * size / sum(m.size for m in plan.quantized)


def all_bits(plan):
    """Of every choice of depths."""
    groups = find_groups(plan.quantized)
    sums = np.zeros(1)
    for group in groups:
        sums = np.unique(np.add.outer(sums, [group.nbytes(depth) for depth in (1, 2, 3, 4)]))
    return 8 * sums / sum(group.weights for group in groups)


def test_some_targets_can_be_met(source):
    """Those of the next test: with so few matrices not all can."""
    found = all_bits(plan_of(source))
    assert sum(bool(((t - 0.02 <= found) & (found <= t)).any()) for t in TARGETS) >= 2


@pytest.mark.parametrize("target", TARGETS)
def test_target_is_met_and_siblings_are_tied(source, measuring, target):
    plan = plan_of(source)
    (config,) = resolve([f"target-{target}bpw"], plan, measuring)
    assert bits(plan, config) == pytest.approx(config.notes["bits_per_weight"])
    assert bits(plan, config) <= target
    if any(target - 0.02 <= value <= target for value in all_bits(plan)):
        assert target - 0.02 <= bits(plan, config)
    for layer in range(2):
        at = f"model.layers.{layer}"
        for names in (["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                      ["mlp.gate_proj", "mlp.up_proj"]):  # fmt: skip
            assert len({config.depth_of(f"{at}.{name}") for name in names}) == 1


def test_measured_divergence_is_that_of_the_model(source, measuring):
    """The figure in the notes, computed again on the same windows without any reuse."""
    plan = plan_of(source)
    (config,) = resolve([TARGET], plan, measuring)
    whole = windows(plan, measuring.text, 8)[4:]
    again = MeasuredModel(plan, 1)
    sample = again.sample(whole)
    again.set_depths({t.module: config.depth_of(t.module) for t in plan.quantized})
    assert again.record(sample) == pytest.approx(config.notes["measured_kl"], rel=1e-4)
    assert config.notes["measured_kl"] <= config.notes["measured_kl_before_exchanges"]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "qwen3_moe", "mixtral"])
def test_reused_outputs_change_nothing(tmp_path, measuring, family):
    """A change in a block costs the same whether or not the blocks before it run again."""
    plan = plan_of(model(tmp_path, family))
    measured = MeasuredModel(plan, 1)
    sample = measured.sample(windows(plan, measuring.text))
    for group in find_groups(plan.quantized):
        measured.set_depths(dict.fromkeys(group.modules, 1))
        first = measured.first_block([group])
        assert first == group.block
        found = measured.divergence(sample, first)
        assert found > 1e-6
        assert found == pytest.approx(measured.divergence(sample, 0), rel=1e-5)
        measured.set_depths(dict.fromkeys(group.modules, FLOAT))
        assert measured.divergence(sample, first) < 1e-7


def test_output_layer_and_embeddings(source, measuring):
    plan = plan_of(source, include=("lm_head", "model.embed_tokens"), kinds=("model",))
    (config,) = resolve(["target-3.5bpw"], plan, measuring)
    assert {"lm_head", "model.embed_tokens"} <= set(config.depths)
    assert 3.48 <= bits(plan, config) <= 3.5


def test_fixed_modules_count(source, measuring):
    plan = plan_of(source)
    base = plan.configs[0].overridden([("*down_proj", 4), ("*layers.0.self_attn.q_proj", 1)])
    plan = replace(plan, configs=(base,))
    (config,) = resolve(["target-4.6bpw"], plan, measuring)
    assert not any("down_proj" in module for module in config.depths)
    config = config.overridden(base.overrides)
    assert config.depth_of("model.layers.1.mlp.down_proj") == 4
    assert config.depth_of("model.layers.0.self_attn.q_proj") == 1
    assert bits(plan, config) == pytest.approx(config.notes["bits_per_weight"])
    assert 4.5 <= bits(plan, config) <= 4.6


def test_divergence_is_met_with_few_bits(source, measuring):
    plan = plan_of(source)
    (some,) = resolve(["target-3bpw"], plan, measuring)
    limit = round(some.notes["measured_kl"], 5)
    (config,) = resolve([f"sens-{limit}"], plan, measuring)
    assert config.notes["measured_kl"] <= limit
    assert bits(plan, config) < 3.4
    (tight,) = resolve([f"sens-{limit / 10:.6f}"], plan, measuring)
    assert tight.notes["measured_kl"] <= limit / 10 + 1e-6
    assert bits(plan, tight) > bits(plan, config)


def test_unreachable_divergence(source, measuring):
    with pytest.raises(TritError, match="larger even with four trits a weight"):
        resolve(["sens-1e-9"], plan_of(source), measuring)


def test_file_is_used_again(source, measuring, monkeypatch):
    plan = plan_of(source)
    (first,) = resolve([TARGET], plan, measuring)
    monkeypatch.setattr("tritllm.allocation.session.MeasuredModel", None)  # must not be needed
    (again,) = resolve([TARGET], plan, measuring)
    assert again == first
    assert again.notes == first.notes
    (without_text,) = resolve([TARGET], plan, replace(measuring, text=None))
    assert without_text == first
    (other,) = resolve(["target-4bpw"], plan, replace(measuring, text=None))
    assert other.notes["measured_kl"] is None
    assert 3.98 <= bits(plan, other) <= 4


def test_killed_run_goes_on(source, measuring, monkeypatch):
    """After three groups; what they cost is not measured again, and the result is the same."""
    plan = plan_of(source)
    (whole,) = resolve([TARGET], plan, replace(measuring, file=None))
    original, measured = measure_module._of, []

    def killed(model, sample, group):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(group.name)
        return original(model, sample, group)

    monkeypatch.setattr(measure_module, "_of", killed)
    with pytest.raises(KeyboardInterrupt):
        resolve([TARGET], plan, measuring)
    kept = json.loads(measuring.file.read_text())
    assert list(kept["groups"]) == measured

    def counted(model, sample, group):
        measured.append(group.name)
        return original(model, sample, group)

    monkeypatch.setattr(measure_module, "_of", counted)
    (resumed,) = resolve([TARGET], plan, measuring)
    assert resumed == whole
    assert len(measured) == len(set(measured)) == 8


def test_mismatches_are_refused(source, measuring, tmp_path):
    plan = plan_of(source)
    resolve([TARGET], plan, measuring)
    for change, what in (
        ({"text": write_text(tmp_path / "other.txt", seed=6)}, "text_sha256"),
        ({"tokens": 32}, "tokens"),
        ({"context": 8}, "context"),
        ({"seed": 1}, "seed"),
    ):
        with pytest.raises(TritError, match=f"measured with another {what}"):
            resolve([TARGET], plan, replace(measuring, **change))
    other = plan_of(model(tmp_path, "qwen2"))
    with pytest.raises(TritError, match="measured with another model_sha256"):
        resolve([TARGET], other, measuring)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("groups"),
        lambda content: content["groups"].popitem()[1]["kl"],
        lambda content: next(iter(content["groups"].values()))["kl"].pop(),
        lambda content: next(iter(content["groups"].values())).update(kl=[-1, 0, 0, 0]),
        lambda content: content["basis"].update(more=1),
        lambda content: content.update(choices=[]),
        lambda content: content.update(tritllm_sensitivities=99),
    ],
)
def test_damaged_files(source, measuring, change):
    plan = plan_of(source)
    resolve([TARGET], plan, measuring)
    content = json.loads(measuring.file.read_text())
    change(content)
    measuring.file.write_text(json.dumps(content))
    with pytest.raises((FormatError, TritError)) as caught:
        resolve([TARGET], plan, replace(measuring, text=None))
    assert str(measuring.file) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("target-1.9bpw", r"hold 2\.\d\d to \d\.\d\d bits"),
        ("target-9bpw", r"must be 1\.9\.\.6\.7"),
    ],
)
def test_targets_out_of_range(source, measuring, name, message):
    with pytest.raises(TritError, match=message):
        resolve([name], plan_of(source), measuring)
    assert not measuring.file.exists()


def test_missing_text(source, tmp_path):
    with pytest.raises(TritError, match="--calibrate or --sensitivity-text"):
        resolve([TARGET], plan_of(source), Measuring(None, None))
    with pytest.raises(TritError, match=r"absent.json is not there"):
        resolve(
            [TARGET], plan_of(source), Measuring(None, tmp_path / "absent.json", must_exist=True)
        )


def test_short_text(source, tmp_path):
    text = write_text(tmp_path / "short.txt", letters=20)
    with pytest.raises(TritError, match="two windows of 16 tokens are needed"):
        resolve([TARGET], plan_of(source), Measuring(text, None, tokens=64, context=CONTEXT))
