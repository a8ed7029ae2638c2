"""Whole calibrations of tiny models: families, resuming, spilling, several configs, fallbacks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from support.calibrated import bytes_of, calibrate, plan_of
from support.tiny_models import VOCABULARY, write_tiny
from support.tiny_text import write_text, write_tokenizer

from tritllm.calibration.calibrator import TextCalibrator
from tritllm.errors import TritError
from tritllm.quantizer.configs import nested_config

CONTEXT = 24


def source_of(tmp_path: Path, family: str) -> Path:
    source = write_tiny(tmp_path / "source", family)
    write_tokenizer(source)
    return source


def write_bert(folder: Path) -> Path:
    torch.manual_seed(4)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    transformers.BertForMaskedLM(config).half().save_pretrained(folder)
    write_tokenizer(folder)
    return folder


class Killed(BaseException):
    """Nothing of tritllm catches this."""


@pytest.mark.parametrize("family", ["qwen2", "qwen3_moe", "mixtral", "bert"])
def test_every_matrix_is_calibrated_and_loses_less(family, tmp_path):
    source = write_bert(tmp_path / "source") if family == "bert" else source_of(tmp_path, family)
    plan = plan_of(source)
    text = write_text(tmp_path / "text.txt")
    encodings = calibrate(TextCalibrator(text, context=CONTEXT), plan, tmp_path / "run")
    (config,) = plan.configs
    notes = encodings.notes(config)
    assert notes["data_free"] == {}
    assert encodings.encoder(config)["calibrated"] == len(plan.quantized)
    assert set(notes["matrices"]) == {matrix.name for matrix in plan.quantized}
    better = 0
    for tensor in plan.quantized:
        note = notes["matrices"][tensor.name]
        assert note["loss_after"] <= note["loss_before"]
        better += note["loss_after"] < 0.9 * note["loss_before"]
        digits = encodings.encoded(tensor, config)
        assert digits.shape == tensor.shape
    assert better > 0.9 * len(plan.quantized)


def test_an_interrupted_calibration_goes_on_to_the_same_bytes(tmp_path):
    plan = plan_of(source_of(tmp_path, "llama"), ["uniform-d1", "uniform-d3"], ["lm_head"])
    calibrator = TextCalibrator(write_text(tmp_path / "text.txt"), context=CONTEXT)
    whole = bytes_of(calibrate(calibrator, plan, tmp_path / "whole"), plan)

    folder = tmp_path / "interrupted"
    folder.mkdir()
    for place in ("block 1 of 2, mlp.down_proj", "block 2 of 2, self_attn.o_proj", "output, lm"):
        seen = []

        def stop(progress, place=place, seen=seen):
            seen.append(progress.where)
            if progress.where.startswith(place):
                raise Killed

        with pytest.raises(Killed):
            calibrator.run(plan, folder, 1, stop)
    assert not any(where.startswith("block 1") for where in seen)  # durable since its end
    encodings = calibrate(calibrator, plan, folder)
    assert bytes_of(encodings, plan) == whole
    assert not list(folder.glob("stream-*"))
    assert not list(folder.glob("activations-*"))
    again = []
    calibrator.run(plan, folder, 1, again.append)
    assert again == []  # nothing is done twice


def test_activations_in_files_give_the_same_bytes(tmp_path):
    plan = plan_of(source_of(tmp_path, "llama"))
    text = write_text(tmp_path / "text.txt")
    kept = calibrate(TextCalibrator(text, context=CONTEXT), plan, tmp_path / "kept")
    spilled = calibrate(
        TextCalibrator(text, context=CONTEXT, in_memory=0), plan, tmp_path / "spilled"
    )
    assert bytes_of(kept, plan) == bytes_of(spilled, plan)
    assert not list((tmp_path / "spilled").glob("activations-*"))


def test_several_configs_at_once_give_what_each_gives_alone(tmp_path):
    source = source_of(tmp_path, "llama_tied")
    calibrator = TextCalibrator(write_text(tmp_path / "text.txt"), context=CONTEXT)
    names = ["uniform-d1", "uniform-d4"]
    both = plan_of(source, names)
    together = bytes_of(calibrate(calibrator, both, tmp_path / "both"), both)
    alone = {}
    for name in names:
        plan = plan_of(source, [name])
        alone |= bytes_of(calibrate(calibrator, plan, tmp_path / name), plan)
    assert together == alone


def test_the_top_planes_of_a_nested_config_are_those_of_its_first_depth(tmp_path):
    source = source_of(tmp_path, "llama_tied")
    calibrator = TextCalibrator(write_text(tmp_path / "text.txt"), context=CONTEXT)
    plan = plan_of(source, ["uniform-d2"])
    deep = replace(plan, configs=(nested_config((2, 4)),))
    shallow = calibrate(calibrator, plan, tmp_path / "shallow")
    nested = calibrate(calibrator, deep, tmp_path / "nested")
    name = "model.layers.0.self_attn.q_proj"  # those behind it see another stream
    first = next(tensor for tensor in plan.quantized if tensor.module == name)
    alone = shallow.encoded(first, plan.configs[0])
    both = nested.encoded(first, deep.configs[0])
    assert both.depth == 4
    np.testing.assert_array_equal(both.levels(2), alone.levels())
    np.testing.assert_array_equal(both.codebook[1], alone.codebook[1])


def test_experts_without_tokens_enough_stay_data_free_and_are_listed(tmp_path):
    plan = plan_of(source_of(tmp_path, "qwen3_moe"))
    text = write_text(tmp_path / "text.txt")
    calibrator = TextCalibrator(text, tokens=14, context=14)
    encodings = calibrate(calibrator, plan, tmp_path / "run")
    (config,) = plan.configs
    listed = encodings.notes(config)["data_free"]
    assert listed
    assert all(".experts." in name for name in listed)
    counted = encodings.encoder(config)
    assert sum(counted["data_free"].values()) == len(listed)
    assert counted["calibrated"] == len(plan.quantized) - len(listed)
    for tensor in plan.quantized:
        assert (encodings.encoded(tensor, config) is None) == (tensor.name in listed)


def test_a_matrix_that_the_model_does_not_run_is_listed(tmp_path):
    source = write_bert(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["bert.pooler.dense.weight"] = np.ones((32, 32), np.float16)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    plan = plan_of(source)
    text = write_text(tmp_path / "text.txt", letters=200)
    encodings = calibrate(TextCalibrator(text, context=CONTEXT), plan, tmp_path / "run")
    (config,) = plan.configs
    assert list(encodings.notes(config)["data_free"]) == ["bert.pooler.dense.weight"]
    assert encodings.encoder(config)["data_free"] == {"not a linear layer of BertForMaskedLM": 1}


def test_inputs_that_are_not_finite_are_refused_by_name(tmp_path):
    source = source_of(tmp_path, "llama")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.post_attention_layernorm.weight"][3] = np.nan
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    plan = plan_of(source)
    calibrator = TextCalibrator(write_text(tmp_path / "text.txt", letters=200), context=CONTEXT)
    with pytest.raises(TritError, match=r"inputs of model\.layers\.1\.mlp\.gate_proj\.weight"):
        calibrate(calibrator, plan, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "no_such_model"}, "transformers cannot build its model"),
        (
            {"architectures": ["LlamaForTokenClassification"]},
            r"parameter score.*no tensor",
        ),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_in_one_line(change, message, tmp_path):
    source = source_of(tmp_path, "llama")
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    plan = plan_of(source)
    calibrator = TextCalibrator(write_text(tmp_path / "text.txt"), context=CONTEXT)
    with pytest.raises(TritError, match=message):
        calibrate(calibrator, plan, tmp_path / "run")


@pytest.mark.parametrize(
    ("letters", "options", "message"),
    [
        (20, {}, "too short, 20 tokens are less than one window of 24"),
        (100, {"tokens": 240}, r"has 100 tokens and 10 windows of 24 are asked for.*--tokens 96"),
        (100, {"tokens": 5}, "--tokens 5 is less than one window"),
        (100, {"context": 500}, "context of 500 is not 2..128"),
    ],
)
def test_a_text_that_is_too_short_is_refused(letters, options, message, tmp_path):
    plan = plan_of(source_of(tmp_path, "llama"))
    text = write_text(tmp_path / "text.txt", letters)
    with pytest.raises(TritError, match=message):
        calibrate(TextCalibrator(text, **{"context": CONTEXT, **options}), plan, tmp_path / "run")


def test_a_missing_tokenizer_is_said(tmp_path):
    plan = plan_of(write_tiny(tmp_path / "source", "llama"))
    calibrator = TextCalibrator(write_text(tmp_path / "text.txt"), context=CONTEXT)
    with pytest.raises(TritError, match="no tokenizer that transformers can load"):
        calibrate(calibrator, plan, tmp_path / "run")


def test_the_words_of_a_command_give_the_settings_again(tmp_path):
    text = write_text(tmp_path / "text.txt")
    calibrator = TextCalibrator(text, tokens=96, context=CONTEXT, seed=3)
    words = " ".join(calibrator.command_options)
    assert words == f"--calibrate {text.name} --tokens 96 --context 24 --seed 3 --device cpu"
    plan = plan_of(write_tiny(tmp_path / "source", "llama"))
    assert 0 < calibrator.memory_bytes(plan) < 100e6  # of a model of 100 kB
    assert 0 < calibrator.disk_bytes(plan) < 10e6
