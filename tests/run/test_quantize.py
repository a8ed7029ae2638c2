"""The public function: what it makes of a command's words, and what it refuses before any work."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from support.model_folders import write_family

import tritllm
from tritllm.cli.quantize_text import CalibrationLines
from tritllm.errors import TritError
from tritllm.quantizer.encodings import CalibrationProgress
from tritllm.run import quantize as module

HUB_NAMES = (
    "Salesforce/wikitext,wikitext-2-raw-v1,train,text",
    "Salesforce/wikitext",
    "allenai/c4,en",
    "owner/wikitext-2.0",
)
FILE_NAMES = ("war.txt", "/data/war", "./a/b", "data/war.txt", "a/b/c", "~/war")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_family(tmp_path_factory.mktemp("models") / "source", "llama")


def test_a_text_is_a_file_or_a_dataset(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "read_dataset", lambda name, split: (name, split))
    for name in HUB_NAMES:
        assert module._text(name, "--calibrate") == (name, "train")
    for name in FILE_NAMES:
        with pytest.raises(TritError, match="No such file or directory; give a text with --cal"):
            module._text(name, "--calibrate")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner/name").write_text("In the beginning")
    text = module._text("owner/name", "--calibrate")
    assert (text.name, text.content) == ("name", "In the beginning")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tokens": 4096}, "--tokens has no effect without --calibrate TEXT"),
        ({"context": 128}, "--context has no effect without --calibrate TEXT"),
        ({"seed": 1}, "--seed has no effect without --calibrate TEXT"),
        ({"device": "cpu"}, "--device has no effect without --calibrate TEXT"),
        ({"nested": (2, 4)}, "--nested needs a text to calibrate on: --calibrate TEXT"),
        ({"nested": (4, 2)}, "--nested takes two or more depths of 1..4, ascending"),
        ({"calibrate": "nowhere.txt"}, "nowhere.txt: No such file or directory"),
        ({"configs": ["nested-d2-d4"]}, "unknown config 'nested-d2-d4'"),
        ({"configs": []}, "no config given"),
    ],
)
def test_what_is_refused_before_any_work(tmp_path, source, options, says):
    arguments = {"configs": ["uniform-d1"]} | options
    configs = arguments.pop("configs")
    with pytest.raises(TritError, match=re.escape(says)) as raised:
        tritllm.quantize(str(source), configs, tmp_path / "out", **arguments)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


ALONE = """
import sys
import tritllm
tritllm.quantize(sys.argv[1], ["uniform-d1"], sys.argv[2], threads=1)
found = {"torch", "transformers", "datasets", "tokenizers"} & set(sys.modules)
assert not found, found
for name in ("torch", "transformers"):
    sys.modules[name] = None
try:
    tritllm.quantize(sys.argv[1], ["uniform-d1"], sys.argv[2] + "-2", calibrate=sys.argv[3])
except tritllm.TritError as error:
    print(error)
"""


def test_torch_is_needed_and_loaded_by_calibration_alone(tmp_path, source):
    text = tmp_path / "text.txt"
    text.write_text("In the beginning")
    line = [sys.executable, "-c", ALONE, str(source), str(tmp_path / "out"), str(text)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "calibration needs torch: pip install 'tritllm[transformers]'\n"
    assert not (tmp_path / "out-2").exists()


def test_progress_without_a_terminal(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr("tritllm.cli.quantize_text.time.monotonic", lambda: now[0])
    lines = CalibrationLines()
    losses = {"uniform-d1": 0.25}, {"uniform-d1": 0.0625}
    for done in range(10, 101, 2):  # of a run that was taken up at a tenth
        lines.show(CalibrationProgress("calibrating", f"block {done}", done, 100, *losses))
        now[0] += 20
    said = capsys.readouterr().err.splitlines()
    assert said[0] == " 10 %  calibrating block 10  loss  uniform-d1 0.25 -> 0.0625"
    assert said[1].endswith(" 16 %  calibrating block 16  loss  uniform-d1 0.25 -> 0.0625"
                            "  about 14 min left")  # fmt: skip
    assert len(said) == 19
    assert said[-1].startswith("100 %")
    assert os.linesep not in said[0]
    lines.show(CalibrationProgress("training", "step 3 of 9", 3, 9, *losses, "KL held back"))
    said = capsys.readouterr().err
    assert said == " 33 %  training step 3 of 9  KL held back  uniform-d1 0.25 -> 0.0625\n"
