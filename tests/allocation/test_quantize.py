"""Mixed depths through the public function: folders, report, picture, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from support.model_folders import hashes, result_hashes
from support.tiny_models import write_tiny
from support.tiny_text import write_text, write_tokenizer

import tritllm
from tritllm import PackedCheckpoint, quantize, verify
from tritllm.errors import OutputError, TritError
from tritllm.format.quantization_config import METHOD


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "source"
    write_tiny(folder, "llama", torch.float32)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def text(tmp_path):
    write_text(tmp_path / "text.txt", letters=2000)
    return tmp_path / "text.txt"


def test_folders_report_and_picture(source, text, tmp_path):
    out = tmp_path / "out"
    names = ["target-3bpw", "uniform-d2", "target-4bpw"]
    reports = quantize(str(source), names, out, sensitivity_text=text, picture=True, threads=1)
    assert [report["config"] for report in reports] == names
    for report, target in ((reports[0], 3.0), (reports[2], 4.0)):
        chosen = report["allocation"]
        assert report["bits_per_weight"]["quantized"] == pytest.approx(chosen["bits_per_weight"])
        assert chosen["bits_per_weight"] <= target
        packed = out / report["config"] / "packed"
        verify(packed)
        checkpoint = PackedCheckpoint(packed)
        for name, tensor in report["quantized"].items():
            assert checkpoint.tensor(name).depth == tensor["depth"]
        assert (out / report["config"] / "depths.png").read_bytes().startswith(b"\x89PNG")
        config = json.loads((packed / "config.json").read_text())["quantization_config"]
        assert config["quant_method"] == METHOD
        assert "--sensitivity-text text.txt" in (packed / "README.md").read_text()
    assert "allocation" not in reports[1]


def test_same_command_again_and_a_killed_run(source, text, tmp_path, monkeypatch):
    """The second run takes the depths from the file; a run that is stopped goes on with them."""
    out, again = tmp_path / "out", tmp_path / "again"
    quantize(str(source), ["target-3bpw"], out, sensitivity_text=text, threads=1)
    before = hashes(out)
    quantize(str(source), ["target-3bpw"], out, sensitivity_text=text, threads=1)
    assert hashes(out) == before

    def stop(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(
            str(source), ["target-3bpw"], again, sensitivity_text=text, threads=1, on_progress=stop
        )
    monkeypatch.setattr("tritllm.allocation.session.Session.measure", None)  # not needed again
    quantize(str(source), ["target-3bpw"], again, sensitivity_text=text, threads=1)
    assert result_hashes(again) == result_hashes(out)


def test_sensitivities_go_from_run_to_run(source, text, tmp_path):
    file = tmp_path / "costs.json"
    options = {"write": ["packed"], "threads": 1, "sensitivities": file}
    quantize(str(source), ["target-3bpw"], tmp_path / "a", sensitivity_text=text, **options)
    quantize(str(source), ["target-3bpw"], tmp_path / "b", **options)
    weights = "target-3bpw/packed/model.safetensors"
    assert hashes(tmp_path / "a")[weights] == hashes(tmp_path / "b")[weights]
    assert not (tmp_path / "b" / "sensitivities.json").exists()


def test_calibrated_at_the_chosen_depths(source, text, tmp_path):
    reports = quantize(
        str(source), ["target-3bpw"], tmp_path / "out", calibrate=text, context=64, tokens=1024,
        write=["packed"], threads=1,
    )  # fmt: skip
    depths = {tensor["depth"] for tensor in reports[0]["quantized"].values()}
    assert len(depths) > 1
    assert reports[0]["encoder"]["calibrated"] > 0


def test_dry_run_writes_nothing(source, text, tmp_path):
    plans = []
    out = tmp_path / "out"
    options = {"dry_run": True, "on_plan": plans.append, "threads": 1}
    assert quantize(str(source), ["target-3bpw"], out, sensitivity_text=text, **options) == []
    assert len(set(plans[0].configs[0].depths.values())) > 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "depths are chosen by what they cost on a text"),
        ({"sensitivities": "absent.json"}, r"absent.json is not there"),
        ({"sensitivity_text": "absent.txt"}, r"absent.txt: .*give a text with --sensitivity-text"),
        ({"depth": ["nothing*=2"]}, "matches nothing"),
        ({"depth": ["*=2"]}, "nothing is left to choose"),
    ],
)
def test_one_line_before_anything_is_written(source, tmp_path, options, message):
    out = tmp_path / "out"
    with pytest.raises(TritError, match=message):
        quantize(str(source), ["target-3bpw"], out, **options)
    assert not out.exists() or not list(out.iterdir())


def test_foreign_folder_is_refused_before_measuring(source, text, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(OutputError, match=r"holds mine.txt"):
        quantize(str(source), ["target-3bpw"], tmp_path / "out", sensitivity_text=text)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("option", ["sensitivities", "sensitivity_text"])
def test_options_without_a_mixed_config(source, tmp_path, option):
    with pytest.raises(TritError, match="no effect without a config of mixed depth"):
        tritllm.quantize(str(source), ["uniform-d2"], tmp_path / "out", **{option: "x"})
