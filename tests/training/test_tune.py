"""Training tiny models through the quantizer: whole models, and block by block."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open
from support.tiny_models import some_ids, write_tiny
from support.tiny_text import write_text, write_tokenizer

from tritllm.calibration.calibrator import TextCalibrator
from tritllm.checkpoint.packed import PackedCheckpoint
from tritllm.checkpoint.verify import verify
from tritllm.cli.quantize_text import lines_of_report
from tritllm.errors import TritError
from tritllm.quantizer.encodings import CalibrationProgress
from tritllm.quantizer.quantize import quantize
from tritllm.training import optimise, tune
from tritllm.training.block_training import BlockTrainer
from tritllm.training.end_to_end import Divergence
from tritllm.training.tune import Tuner
from tritllm.training.windows import TrainingWindows

CONFIGS = ["uniform-d1"]
CONTEXT = 16


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "BATCH_TOKENS", 4 * CONTEXT)


def make_source(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float16) -> Path:
    source = write_tiny(folder / "source", family, dtype)
    write_tokenizer(source)
    return source


def calibrator(folder: Path, letters: int = 1500, **options: Any) -> TextCalibrator:
    text = write_text(folder / "text.txt", letters)
    return TextCalibrator(text, context=CONTEXT, **options)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama, calibrated as every training here begins."""
    folder = tmp_path_factory.mktemp("calibrated")
    make_source(folder)
    return run(folder, "calibrated", calibrator(folder))


def tuner(folder: Path, steps: int = 24, **options: Any) -> Tuner:
    before = calibrator(folder, **options)
    return Tuner(before, before.text, steps=steps, context=CONTEXT)


def run(folder: Path, out: str, made: Any, **options: Any) -> Path:
    quantize(str(folder / "source"), CONFIGS, folder / out, threads=1, calibrator=made, **options)
    return folder / out / CONFIGS[0]


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def printed(folder: Path) -> list[str]:
    return lines_of_report(report(folder))


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "packed").glob("*.safetensors")}


def divergence(folder: Path, source: Path) -> float:
    """Of the dequantized model on the held-back windows' kind of text."""
    with torch.no_grad():
        ids = some_ids(64, CONTEXT) % 27 + 3
        expected, found = (
            transformers.AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32)(ids).logits
            for f in (source, folder / "model")
        )
    return torch.nn.functional.kl_div(
        found.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean"
    ).item()


def held_back_divergence(folder: Path, source: Path, text: str) -> float:
    """Of the dequantized model on the very windows that training judges by."""
    ids = transformers.AutoTokenizer.from_pretrained(source)(text)["input_ids"]
    windows = torch.from_numpy(TrainingWindows(np.array(ids), CONTEXT, 0).held_back)
    teacher, student = (
        transformers.AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32)
        for f in (source, folder / "model")
    )
    return Divergence(teacher, student, torch.device("cpu")).measure(windows)


@pytest.mark.parametrize("family", ["qwen2", "qwen3_moe"])
def test_the_model_written_is_the_one_that_was_judged_best(family, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(tune.RATES.latent, 1, 0.002)
    monkeypatch.setattr(tune, "BATCH_TOKENS", 16 * CONTEXT)
    source = make_source(tmp_path, family, torch.bfloat16 if family == "qwen2" else torch.float16)
    made = tuner(tmp_path, letters=4000)
    tuned = run(tmp_path, "tuned", made)
    verify(tuned / "packed")
    training = report(tuned)["calibration"]["training"]
    assert training["kept_step"] > 0
    assert training["loss_after"] < training["loss_before"]
    found = held_back_divergence(tuned, source, made.text.content)
    assert found == pytest.approx(training["loss_after"], rel=0.01)
    trained = PackedCheckpoint(tuned / "packed")
    norms = [name for name in trained.kept if "norm" in name]
    assert len(norms) >= 5
    with safe_open(source / "model.safetensors", "pt") as original:
        for name in norms:
            stored = original.get_tensor(name).view(torch.uint8).numpy()
            assert trained.read(name) != stored.tobytes()


def test_a_quantized_embedding_counts_as_the_file_has_it(tmp_path: Path):
    source = make_source(tmp_path, "llama_tied")
    made = tuner(tmp_path, steps=4)
    tuned = run(tmp_path, "tuned", made, include=["model.embed_tokens"], write=["model"])
    assert "model.embed_tokens.weight" in report(tuned)["quantized"]
    found = held_back_divergence(tuned, source, made.text.content)
    wanted = report(tuned)["calibration"]["training"]["loss_after"]
    assert found == pytest.approx(wanted, rel=0.01)


def test_tuning_twice_gives_the_same_bytes_and_so_does_going_on(tmp_path: Path, monkeypatch):
    make_source(tmp_path)
    whole = all_bytes(run(tmp_path, "whole", tuner(tmp_path)))

    monkeypatch.setattr(tune, "SAVE_SECONDS", 0.0)

    class KilledError(Exception):
        pass

    def kill(progress):
        if progress.activity == "training" and "step 13 " in progress.where:
            raise KilledError

    with pytest.raises(KilledError):
        run(tmp_path, "killed", tuner(tmp_path), on_calibration=kill)
    assert list((tmp_path / "killed").rglob("*.state"))
    seen = []
    again = run(tmp_path, "killed", tuner(tmp_path), on_calibration=seen.append)
    assert seen
    assert not [p for p in seen if "step 1 " in p.where]  # the first is saved, however slowly
    assert all_bytes(again) == whole
    shutil.rmtree(tmp_path / "whole")


def test_what_does_not_help_leaves_the_calibrated_bytes(calibrated, tmp_path: Path, monkeypatch):
    make_source(tmp_path)
    wild = optimise.Rates(dict.fromkeys(range(1, 5), 50.0), 5.0, 5.0)
    monkeypatch.setattr(tune, "RATES", wild)
    tuned = run(tmp_path, "tuned", tuner(tmp_path, steps=4))
    assert report(tuned)["calibration"]["training"]["kept_step"] == 0
    assert all_bytes(tuned) == all_bytes(calibrated)


def test_a_block_trained_gives_what_the_float_block_gives_more_nearly(calibrated, tmp_path: Path):
    source = make_source(tmp_path)
    trainer = BlockTrainer(steps=20)
    seen: list[CalibrationProgress] = []
    made = calibrator(tmp_path, trainer=trainer)
    trained = run(tmp_path, "trained", made, on_calibration=seen.append)
    verify(trained / "packed")
    done = [step.done / step.total for step in seen]
    assert done == sorted(done)
    assert done[-1] == pytest.approx(1, abs=0.02)  # but for the stream that leaves the last block
    steps = [step for step in seen if "training" in step.where]
    assert steps[0].where == "block 1 of 2, training, step 1 of 20"
    assert len(steps) == 40
    assert steps[19].loss_after["uniform-d1"] < steps[19].loss_before["uniform-d1"]
    matrices = report(trained)["calibration"]["matrices"].values()
    assert len(matrices) == 14
    for matrix in matrices:
        told = matrix["trained"]
        assert told["block_after"] < told["block_before"]
        assert told["kept_step"] > 0
    assert divergence(trained, source) < divergence(calibrated, source)
    again = run(tmp_path, "again", calibrator(tmp_path, trainer=trainer))
    assert all_bytes(again) == all_bytes(trained)
    said = report(trained)["encoder"]
    assert said["trained"]["steps"] == 20
    assert said["trained"]["improved"] == said["trained"]["matrices"] == 14
    assert any("trained for 20 steps on the output of each block" in s for s in printed(trained))


def test_blocks_and_then_the_whole_are_trained_and_both_are_told(tmp_path: Path):
    source = make_source(tmp_path)
    before = calibrator(tmp_path, trainer=BlockTrainer(steps=6))
    both = run(tmp_path, "both", Tuner(before, before.text, steps=8, context=CONTEXT))
    said = report(both)["encoder"]["trained"]
    assert (said["steps"], said["blocks"]["steps"]) == (8, 6)
    assert said["held_back_tokens"] == 9 * CONTEXT
    assert said["text_tokens"] == 1500
    line = next(line for line in printed(both) if line.startswith("trained for"))
    assert "trained for 6 steps on the output of each block; then trained for 8 steps of 64" in line
    lines = printed(both)
    assert any("outputs on windows held back" in line for line in lines)
    found = held_back_divergence(both, source, before.text.content)
    (told,) = re.findall(rf"([0-9.e-]+) after step {said['kept_step']} of 8", "\n".join(lines))
    assert float(told) == pytest.approx(found, rel=0.01)


def test_what_cannot_be_tuned_is_refused_before_the_calibration(tmp_path: Path):
    make_source(tmp_path)
    before = calibrator(tmp_path)
    short = replace(before.text, content="in the beginning")
    seen: list[CalibrationProgress] = []
    with pytest.raises(TritError, match="too few to train on"):
        run(tmp_path, "out", Tuner(before, short, context=CONTEXT), on_calibration=seen.append)
    assert not seen


def test_only_the_configs_named_are_trained_block_by_block(calibrated, tmp_path: Path):
    make_source(tmp_path)
    trainer = BlockTrainer(steps=3, configs=frozenset({"uniform-d2"}))
    other = run(tmp_path, "other", calibrator(tmp_path, trainer=trainer))
    assert all_bytes(other) == all_bytes(calibrated)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda c: Tuner(c, c.text, steps=0, context=CONTEXT), "--steps 0 trains nothing"),
        (lambda c: replace(c, trainer=BlockTrainer(steps=0)), "--steps 0 trains nothing"),
        (lambda c: Tuner(c, replace(c.text, content="abc"), context=CONTEXT), "has 3 tokens"),
        (lambda c: replace(c, tokens=CONTEXT, trainer=BlockTrainer(5)), "gives one window"),
    ],
)
def test_what_cannot_train_is_refused_in_one_line(made, words, tmp_path: Path):
    make_source(tmp_path)
    with pytest.raises(TritError, match=words):
        run(tmp_path, "out", made(calibrator(tmp_path)))
    assert not (tmp_path / "out" / CONFIGS[0] / "packed").exists()


def test_a_training_that_breaks_off_says_where_and_keeps_the_best(tmp_path: Path, monkeypatch):
    make_source(tmp_path)
    gradients = tune.Divergence.add_gradients
    calls = []

    def add_gradients(self, windows):
        calls.append(1)
        return math.nan if len(calls) == 15 else gradients(self, windows)

    monkeypatch.setattr(tune.Divergence, "add_gradients", add_gradients)
    tuned = run(tmp_path, "tuned", tuner(tmp_path))
    training = report(tuned)["calibration"]["training"]
    assert training["broke_off"] == 15
    assert 0 < training["kept_step"] < 15
    verify(tuned / "packed")
