"""The seam for calibrated digits: taken over by config, resumed, told, and cleaned up."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.model_folders import (
    hashes,
    llama,
    load_safetensors,
    result_hashes,
    write_family,
)
from support.stub_calibrator import (
    NORM,
    StubCalibrator,
    expected_encoding,
    expected_values,
    file_of,
    source_array,
)

from tritllm import PackedCheckpoint, dequantize, info, verify
from tritllm.errors import OutputError, TritError
from tritllm.publish.card import card
from tritllm.quantizer import shard_pass
from tritllm.quantizer.configs import Config, nested_config
from tritllm.quantizer.output_folder import calibration_folder
from tritllm.quantizer.quantize import quantize
from tritllm.quantizer.run_lock import FOLDER

SAME_DEPTH = Config("other-d1", 1)
MIXED = Config(
    "mixed", 2, depths={"model.layers.0.mlp.up_proj": 4, "model.layers.1.mlp.up_proj": 1}
)
CONFIGS = ("uniform-d1", SAME_DEPTH, MIXED, nested_config((2, 4)))
NAMES = ("uniform-d1", "other-d1", "mixed", "nested-d2-d4")
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")


class InterruptedRunError(Exception):
    """Raised from a callback."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_family(tmp_path_factory.mktemp("models") / "source", "llama", shards=2)


@pytest.fixture(scope="module")
def plan(source, tmp_path_factory):
    plans = []
    out = tmp_path_factory.mktemp("plan") / "out"
    quantize(
        str(source), CONFIGS, out, calibrator=StubCalibrator(), dry_run=True, on_plan=plans.append
    )
    assert not out.exists()
    return plans[0]


@pytest.fixture(scope="module")
def whole(source):
    """A run of all configs that was not interrupted."""
    out = source.parent / "whole"
    quantize(str(source), CONFIGS, out, calibrator=StubCalibrator())
    return out


def stopped_after(steps: int):
    """A callback that ends the run after some calls."""
    seen = 0

    def callback(_):
        nonlocal seen
        seen += 1
        if seen == steps:
            raise InterruptedRunError

    return callback


# What is written


def test_each_config_has_its_own_digits(source, plan, whole):
    quantize(str(source), CONFIGS[:3], whole.parent / "data-free")
    taken = 0
    for config in plan.configs:
        packed = PackedCheckpoint(whole / config.name / "packed")
        model = load_safetensors_of(whole / config.name / "model")
        for matrix in plan.quantized:
            name = matrix.name
            expected = expected_encoding(plan, matrix, config, 0)
            if expected is None:
                if config.name in NAMES[:3]:
                    other = PackedCheckpoint(whole.parent / "data-free" / config.name / "packed")
                    expected = other.tensor(name)
                else:
                    continue
            else:
                taken += 1
            found = packed.tensor(name)
            assert found.depth == config.depth_of(matrix.module)
            for part in ("weight", "scale", "codebook"):
                np.testing.assert_array_equal(getattr(found, part), getattr(expected, part))
            np.testing.assert_array_equal(model[name], expected.decode(dtype=np.float16))
    assert taken == 13 * len(CONFIGS)
    one, other = (result_hashes(whole / name) for name in NAMES[:2])
    weights = [n for n in one if n.endswith(".safetensors")]
    assert len(weights) == 4
    assert all(one[name] != other[name] for name in weights)


def load_safetensors_of(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_safetensors(path)
    return found


def test_kept_tensors_that_were_trained(plan, whole):
    for config in plan.configs:
        manifest = PackedCheckpoint(whole / config.name / "packed").manifest
        report = json.loads((whole / config.name / "report.json").read_text())
        for kind in ("packed", "model"):
            found = load_safetensors_of(whole / config.name / kind)
            for tensor in plan.all_tensors:
                if tensor.decision.quantize:
                    continue
                name = tensor.entry.name
                trained = expected_values(plan, tensor, config)
                assert (trained is not None) == (name == NORM and "d1" in config.name)
                values = source_array(plan, tensor) if trained is None else trained
                assert found[name].tobytes() == values.tobytes()
                reason = tensor.decision.reason + (", trained" if trained is not None else "")
                assert manifest["tensors"][name]["kept"] == report["kept"][name] == reason


def test_folders_are_like_any_others(tmp_path, whole):
    for name in NAMES:
        packed = whole / name / "packed"
        assert verify(packed).quantized == 14
        dequantize(packed, tmp_path / name)
        assert result_hashes(tmp_path / name) == result_hashes(whole / name / "model")
        before = (packed / "README.md").read_bytes()
        card(packed)
        assert (packed / "README.md").read_bytes() == before
        assert info(str(packed)).encoder["tokens"] == 4096
    depths = PackedCheckpoint(whole / "mixed/packed").config["quantization_config"]["depth"]
    assert depths["model.layers.0.mlp.up_proj"] == 4
    assert depths["model.layers.1.mlp.up_proj"] == 1
    assert depths["model.layers.0.mlp.down_proj"] == 2


def test_what_is_told(whole):
    calibration = StubCalibrator().settings
    for name in NAMES:
        packed = whole / name / "packed"
        report = json.loads((whole / name / "report.json").read_text())
        manifest = PackedCheckpoint(packed).manifest
        stored = json.loads((packed / "config.json").read_text())["quantization_config"]
        encoder = manifest["encoder"]
        assert encoder == stored["encoder"] == report["encoder"]
        assert encoder["text"] == calibration["text"]
        assert encoder.get("nested") == ([2, 4] if name.startswith("nested") else None)
        assert report["calibration"] == {"of": name, "seconds": 1.5}
        assert report["fingerprint"]["calibration"] == calibration
        how = "--nested 2,4" if name.startswith("nested") else f"--configs {name}"
        assert manifest["command"] == (
            f"tritllm quantize --model source {how} --out out --calibrate 'a text' --seed 0"
        )
        text = (packed / "README.md").read_text()
        assert "no calibration" not in text
        assert (
            "13 matrices calibrated on 4,096 tokens in windows of 512 of a text "
            "(SHA-256 555555555555...)" in text
        )
        assert "data-free: 1 matrix (too few tokens)" in text
        assert ("trained for 7 steps" in text) == ("d1" in name)
        assert ("| Not quantized, but trained | all `*_norm` layers |" in text) == ("d1" in name)
        assert ("to be read at 2 or 4 planes" in text) == name.startswith("nested")


def test_a_data_free_run_says_nothing_of_it(tmp_path, source):
    quantize(str(source), ["uniform-d1"], tmp_path)
    packed = tmp_path / "uniform-d1/packed"
    report = json.loads((tmp_path / "uniform-d1/report.json").read_text())
    assert not {"encoder", "calibration"} & {*report, *report["fingerprint"]}
    assert "encoder" not in PackedCheckpoint(packed).manifest
    assert "no calibration" in (packed / "README.md").read_text()


# Resuming


def test_a_calibrator_goes_on_where_it_was_stopped(tmp_path, source, whole):
    results = len(llama()) * len(CONFIGS)
    for steps in (1, 20, results):
        out = tmp_path / f"out-{steps}"
        stopped, again = StubCalibrator(), StubCalibrator()
        with pytest.raises(InterruptedRunError):
            quantize(
                str(source), CONFIGS, out, calibrator=stopped, on_calibration=stopped_after(steps)
            )
        assert not list(out.glob("*/packed"))
        quantize(str(source), CONFIGS, out, calibrator=again)
        assert (stopped.worked, again.worked) == (steps, results - steps)
        assert result_hashes(out) == result_hashes(whole)
        assert {path.name for path in out.iterdir()} == set(NAMES)


def test_the_shard_pass_goes_on_with_what_the_calibrator_left(tmp_path, monkeypatch, source, whole):
    monkeypatch.setattr(shard_pass, "COMMIT_BYTES", 4096)
    for tensors in (1, 9, 14, len(llama())):
        out = tmp_path / f"out-{tensors}"
        again = StubCalibrator()
        with pytest.raises(InterruptedRunError):
            quantize(
                str(source), CONFIGS, out, calibrator=StubCalibrator(),
                on_progress=stopped_after(tensors),
            )  # fmt: skip
        quantize(str(source), CONFIGS, out, calibrator=again)
        assert again.worked == 0
        assert result_hashes(out) == result_hashes(whole)
        assert {path.name for path in out.iterdir()} == set(NAMES)


def test_a_finished_run_again_changes_nothing(source, whole):
    before = hashes(whole)
    again = StubCalibrator()
    reports = quantize(str(source), CONFIGS, whole, calibrator=again)
    assert [report["config"] for report in reports] == [*NAMES]
    assert again.worked == 0
    assert hashes(whole) == before


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (StubCalibrator(seed=3), "calibration.seed: 0 -> 3"),
        (None, "calibration: given -> none"),
    ],
)
def test_other_settings_are_refused(tmp_path, source, other, named):
    out = tmp_path / "out"
    with pytest.raises(InterruptedRunError):
        quantize(
            str(source), ["uniform-d1"], out, calibrator=StubCalibrator(),
            on_calibration=stopped_after(3),
        )  # fmt: skip
    before = hashes(out)
    with pytest.raises(OutputError) as raised:
        quantize(str(source), ["uniform-d1"], out, calibrator=other)
    assert f"an unfinished run with other settings is here ({named})" in str(raised.value)
    assert hashes(out) == before


def test_other_depths_of_a_mixed_config_are_refused(tmp_path, source):
    out = tmp_path / "out"
    quantize(str(source), [MIXED], out)
    with pytest.raises(OutputError, match=r"depth_maps\.mixed: "):
        quantize(str(source), [Config("mixed", 2, depths={"model.layers.0.mlp.up_proj": 3})], out)


def test_a_data_free_run_is_not_continued_by_a_calibrated_one(tmp_path, source):
    quantize(str(source), ["uniform-d1"], tmp_path)
    with pytest.raises(OutputError, match=r"other settings \(calibration: none -> given\)"):
        quantize(str(source), ["uniform-d1"], tmp_path, calibrator=StubCalibrator())


@pytest.mark.parametrize("damage", ["cut short", "of another matrix"])
@pytest.mark.parametrize("kept", [False, True])
def test_a_damaged_result_is_refused(tmp_path, source, plan, damage, kept):
    out = tmp_path / "out"
    with pytest.raises(InterruptedRunError):
        quantize(
            str(source), CONFIGS, out, calibrator=StubCalibrator(), on_progress=stopped_after(1)
        )
    config = plan.configs[0]
    name = NORM if kept else "model.layers.1.mlp.up_proj.weight"
    path = file_of(calibration_folder(out), name, config)
    if damage == "cut short":
        os.truncate(path, path.stat().st_size // 2)
    elif kept:
        np.savez(path, values=np.ones(7, np.float16))
    else:
        other = next(m.name for m in plan.quantized if m.module.endswith("q_proj"))
        path.write_bytes(file_of(calibration_folder(out), other, config).read_bytes())
    says = "damaged" if damage == "cut short" else f"the result kept for {name} is"
    with pytest.raises(OutputError, match=says):
        quantize(str(source), CONFIGS, out, calibrator=StubCalibrator())
    assert not list(out.glob("*/packed"))


# Killed with SIGKILL


def killed_run(source: str, out: str, point: int, log: str) -> None:
    """In a child: a run that kills itself before its n-th change of the disk; 0 is never."""
    changes = 0
    shard_pass.COMMIT_BYTES = 8192

    def hook(event: str, details: tuple) -> None:
        nonlocal changes
        opened = event == "open" and str(details[0]).startswith(out)
        if event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate") or (
            opened and details[2] & os.O_ACCMODE
        ):
            changes += 1
            if changes == point:
                os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = os.fstat
    sys.addaudithook(hook)
    quantize(source, CONFIGS[:2], out, calibrator=StubCalibrator(), threads=1)
    Path(log).write_text(str(changes))


@posix
def test_killed_anywhere_it_ends_with_the_same_bytes(tmp_path, source, whole):
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["tritllm.cli.main", "pytest", "ml_dtypes"])
    expected = {n: h for n, h in result_hashes(whole).items() if n.split("/")[0] in NAMES[:2]}

    def run(out: Path, point: int) -> int:
        log = str(tmp_path / "log")
        child = forks.Process(target=killed_run, args=(str(source), str(out), point, log))
        child.start()
        child.join(120)
        return child.exitcode

    assert run(tmp_path / "whole", 0) == 0
    changes = int((tmp_path / "log").read_text())
    assert result_hashes(tmp_path / "whole") == expected
    points = {*range(2, changes, changes // 12), *range(changes - 8, changes + 1, 2)}
    for point in sorted(points):
        out = tmp_path / f"out-{point}"
        assert run(out, point) == -signal.SIGKILL
        quantize(str(source), CONFIGS[:2], out, calibrator=StubCalibrator())
        assert result_hashes(out) == expected, point
        assert {path.name for path in out.iterdir()} == set(NAMES[:2]), point


# What a run takes, and what it refuses


def test_the_plan_counts_what_the_calibrator_takes(tmp_path, source):
    plans = []
    options = {"dry_run": True, "on_plan": plans.append}
    quantize(str(source), ["uniform-d1"], tmp_path / "out", **options)
    for calibrator in (StubCalibrator(memory=1 << 29, disk=12345), StubCalibrator(memory=1)):
        quantize(str(source), ["uniform-d1"], tmp_path / "out", calibrator=calibrator, **options)
    alone, large, small = plans
    assert large.disk_bytes == alone.disk_bytes + 12345
    assert large.peak_memory == 1 << 29
    assert small.peak_memory == alone.peak_memory
    assert alone.calibration is None


@pytest.mark.parametrize(
    ("calibrator", "says"),
    [
        (StubCalibrator(memory=1 << 60), r"about \d+\.\d GB of memory are needed"),
        (StubCalibrator(disk=1 << 60), r"GB more are needed and"),
    ],
)
def test_what_is_not_there_is_said_before_anything_is_written(tmp_path, source, calibrator, says):
    with pytest.raises(TritError, match=says):
        quantize(str(source), ["uniform-d1"], tmp_path / "out", calibrator=calibrator)
    assert not (tmp_path / "out").exists()
    assert calibrator.worked == 0


@pytest.mark.parametrize(
    ("configs", "options", "says"),
    [
        ([nested_config((2, 4))], {}, "--nested needs a text to calibrate on"),
        (["uniform-d1"], {"calibrator": StubCalibrator(), "codec": "v2"}, "codec v2 takes no"),
        ([SAME_DEPTH, Config("other-d1", 2)], {}, "two configs have the same name"),
    ],
)
def test_what_does_not_go_together(tmp_path, source, configs, options, says):
    with pytest.raises(TritError, match=says):
        quantize(str(source), configs, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("depths", [(2,), (4, 2), (2, 2), (0, 2), (2, 5), ("2", "4")])
def test_depths_that_do_not_nest(depths):
    with pytest.raises(TritError, match="--nested takes two or more depths"):
        nested_config(depths)


def test_a_run_needs_no_torch(tmp_path, source):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from support.stub_calibrator import StubCalibrator\n"
        "from tritllm.quantizer.quantize import quantize\n"
        "quantize(sys.argv[1], ['uniform-d1'], sys.argv[2], calibrator=StubCalibrator())\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    line = [sys.executable, "-c", code, str(source), str(tmp_path / "out")]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out" / FOLDER).exists()
