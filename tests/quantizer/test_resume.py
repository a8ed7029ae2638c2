"""A run that was stopped goes on, and its bytes are those of a run that was not."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.model_folders import (
    hashes,
    llama,
    random_tensors,
    result_hashes,
    split,
    write_family,
    write_model,
)

import tritllm
from tritllm import quantize, verify
from tritllm.errors import OutputError, SourceError
from tritllm.quantizer import shard_pass
from tritllm.quantizer.run_lock import FOLDER, RunLock

CONFIGS = ("uniform-d1", "uniform-d3")
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")  # audit events
JOURNAL = f"{FOLDER}/journal.jsonl"
posix = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")


class InterruptedRunError(Exception):
    """Raised from on_progress."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_family(
        tmp_path_factory.mktemp("models") / "source", "llama", shards=2, dtype=np.float32
    )


@pytest.fixture(scope="module")
def uninterrupted(source):
    out = source.parent / "whole"
    quantize(str(source), CONFIGS, out)
    return result_hashes(out)


@pytest.fixture
def small_commits(monkeypatch):
    """Commit after nearly every tensor, so that shards are taken up in their middle."""
    monkeypatch.setattr(shard_pass, "COMMIT_BYTES", 4096)


def interrupted_after(tensors: int):
    """An on_progress that ends the run after some tensors."""
    seen = 0

    def on_progress(_):
        nonlocal seen
        seen += 1
        if seen == tensors:
            raise InterruptedRunError

    return on_progress


def check_whole_or_absent(out: Path, uninterrupted: dict[str, str]) -> None:
    """Whatever has its final name is complete."""
    found = hashes(out)
    for config in CONFIGS:
        for kind in ("packed", "model"):
            prefix = f"{config}/{kind}/"
            if (out / prefix).exists():
                wanted = {n: h for n, h in uninterrupted.items() if n.startswith(prefix)}
                assert {n: h for n, h in found.items() if n.startswith(prefix)} == wanted


# Killed with SIGKILL before its n-th change of the disk


def killed_run(arguments: list[str], out: str, point: int, commit_bytes: int, log: str) -> None:
    """In a child: the command line, which kills itself as `kill -9` would; point 0 is never."""
    sys.stdout = sys.stderr = open(log, "w")  # noqa: SIM115 - lives as long as the process
    shard_pass.COMMIT_BYTES = commit_bytes
    changes = 0

    def count() -> None:
        nonlocal changes
        changes += 1
        if changes == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, details: tuple) -> None:
        opened = event == "open" and str(details[0]).startswith(out)
        if event in CHANGES or (opened and details[2] & os.O_ACCMODE):
            count()

    def counted(function):
        def call(*arguments):
            count()
            return function(*arguments)

        return call

    os.fsync = counted(os.fstat)  # a kill, unlike a power cut, does not ask for more
    os.posix_fallocate = counted(os.posix_fallocate)
    sys.addaudithook(hook)
    from tritllm.cli.main import app

    app(arguments, standalone_mode=False)
    Path(log).write_text(str(changes))


@pytest.fixture(scope="module")
def killed(source):
    """Run the command line in a child; returns (exit code, changes of the disk if it ended)."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["tritllm.cli.main", "pytest", "ml_dtypes"])

    def run(out: Path, point: int, commit_bytes: int) -> tuple[int, int]:
        arguments = ["quantize", "--model", str(source), "--configs", ",".join(CONFIGS)]
        arguments += ["--out", str(out), "--threads", "1"]
        log = out.with_suffix(".log")
        child = forks.Process(
            target=killed_run, args=(arguments, str(out), point, commit_bytes, str(log))
        )
        child.start()
        child.join(120)
        changes = int(log.read_text()) if child.exitcode == 0 else 0
        return child.exitcode, changes

    return run


@posix
@pytest.mark.parametrize(
    ("commit_bytes", "points"), [(1 << 28, 24), (8192, 36)], ids=["by shard", "within shards"]
)
def test_killed_at_any_change_of_the_disk(
    tmp_path, source, uninterrupted, killed, commit_bytes, points
):
    code, changes = killed(tmp_path / "whole", 0, commit_bytes)
    assert code == 0
    assert result_hashes(tmp_path / "whole") == uninterrupted
    assert changes > 60
    last_steps = range(changes - 5, changes + 1)
    for point in sorted({*range(1, changes + 1, changes // points), *last_steps}):
        out = tmp_path / f"out-{point}"
        code, _ = killed(out, point, commit_bytes)
        assert code == -signal.SIGKILL, point
        if out.exists():
            check_whole_or_absent(out, uninterrupted)
        quantize(str(source), CONFIGS, out)
        assert result_hashes(out) == uninterrupted, point
        shutil.rmtree(out)


@posix
def test_killed_again_and_again_it_still_ends(tmp_path, uninterrupted, killed):
    out = tmp_path / "out"
    for attempt in range(200):
        code, _ = killed(out, 8 + 4 * attempt, 4096)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        check_whole_or_absent(out, uninterrupted)
    assert code == 0
    assert attempt > 3
    assert result_hashes(out) == uninterrupted


@posix
def test_killed_from_outside_at_lines_and_at_random(tmp_path):
    rng = random.Random(4)
    tensors = random_tensors(llama(hidden=256, inner=512, layers=4), np.float32)
    source = write_model(tmp_path / "source", {"model_type": "llama"}, split(tensors, 3))
    arguments = ["quantize", "--model", str(source), "--configs", "uniform-d2,uniform-d4"]
    configs = ("uniform-d2", "uniform-d4")
    quantize(str(source), configs, tmp_path / "whole")
    uninterrupted = result_hashes(tmp_path / "whole")
    for lines in (1, 6, 11, 15):
        out = tmp_path / f"out-{lines}"
        child = subprocess.Popen(
            [sys.executable, "-m", "tritllm", *arguments, "--out", str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for _ in range(lines):
            assert child.stderr.readline()
        try:
            child.wait(rng.random() * 0.1)
        except subprocess.TimeoutExpired:
            child.kill()
        child.wait()
        child.stderr.close()
        quantize(str(source), configs, out)
        assert result_hashes(out) == uninterrupted


# Stopped within this process


@pytest.mark.parametrize("commits", ["by shard", "within shards"])
def test_stopped_after_each_tensor(tmp_path, monkeypatch, source, uninterrupted, commits):
    if commits == "within shards":
        monkeypatch.setattr(shard_pass, "COMMIT_BYTES", 4096)
    for tensors in range(1, len(llama()) + 1):
        out = tmp_path / f"out-{tensors}"
        with pytest.raises(InterruptedRunError):
            quantize(str(source), CONFIGS, out, on_progress=interrupted_after(tensors))
        assert not list(out.glob("*/packed"))
        assert not list(out.glob("*/model"))
        quantize(str(source), CONFIGS, out)
        assert result_hashes(out) == uninterrupted
        shutil.rmtree(out)


@pytest.mark.usefixtures("small_commits")
def test_finished_tensors_are_not_done_again(tmp_path, source):
    out = tmp_path / "out"
    with pytest.raises(InterruptedRunError):
        quantize(str(source), CONFIGS, out, on_progress=interrupted_after(15))
    finished = sum('"tensor"' in line for line in (out / JOURNAL).read_text().splitlines())
    assert 9 < finished <= 15
    steps = []
    quantize(str(source), CONFIGS, out, on_progress=steps.append)
    assert len(steps) == len(llama()) - finished
    assert steps[-1].done_bytes == steps[-1].total_bytes


@pytest.mark.usefixtures("small_commits")
def test_a_torn_last_line_is_dropped(tmp_path, source, uninterrupted):
    out = tmp_path / "out"
    with pytest.raises(InterruptedRunError):
        quantize(str(source), CONFIGS, out, on_progress=interrupted_after(12))
    journal = (out / JOURNAL).read_bytes()
    last = journal[:-1].rfind(b"\n") + 1
    for cut in (last + 1, (last + len(journal)) // 2, len(journal) - 1):
        shutil.copytree(out, tmp_path / f"cut-{cut}")
        (tmp_path / f"cut-{cut}" / JOURNAL).write_bytes(journal[:cut])
        quantize(str(source), CONFIGS, tmp_path / f"cut-{cut}")
        assert result_hashes(tmp_path / f"cut-{cut}") == uninterrupted


def test_a_journal_torn_in_its_first_line_begins_anew(tmp_path, source, uninterrupted):
    out = tmp_path / "out"
    (out / FOLDER).mkdir(parents=True)
    (out / JOURNAL).write_bytes(b'{"tool_version": "0.')
    quantize(str(source), CONFIGS, out)
    assert result_hashes(out) == uninterrupted


@pytest.mark.parametrize("damage", [b"{]\n", b"\x00\x00\n", b"[]\n", b"7\n", b"{}\n"])
def test_a_damaged_journal_is_refused(tmp_path, source, damage):
    out = tmp_path / "out"
    with pytest.raises(InterruptedRunError):
        quantize(str(source), CONFIGS, out, on_progress=interrupted_after(12))
    whole = (out / JOURNAL).read_bytes()
    for content in (damage + whole, whole + damage):
        (out / JOURNAL).write_bytes(content)
        with pytest.raises(OutputError, match="damaged") as raised:
            quantize(str(source), CONFIGS, out)
        assert "\n" not in str(raised.value)


def test_the_journal_and_its_folder_go_when_the_run_ends(tmp_path, source):
    quantize(str(source), CONFIGS, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(CONFIGS)
    for config in CONFIGS:
        assert {path.name for path in (tmp_path / "out" / config).iterdir()} == {
            "packed",
            "model",
            "report.json",
        }


# What changed is noticed


@pytest.fixture
def unfinished(tmp_path):
    """(source, out, run): a run of uniform-d2 that was stopped after a few tensors."""
    source = write_family(tmp_path / "source", "llama", shards=2)
    out = tmp_path / "out"
    with pytest.raises(InterruptedRunError):
        quantize(str(source), ["uniform-d2"], out, on_progress=interrupted_after(14))
    return source, out


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"configs": ["uniform-d1"]}, r"configs: \['uniform-d2'\] -> \['uniform-d1'\]"),
        ({"configs": ["uniform-d2", "uniform-d1"]}, "configs"),
        ({"codec": "v2"}, "codec: v3 -> v2"),
        ({"dtype": "bfloat16"}, "dtype: float16 -> bfloat16"),
        ({"write": ["packed"]}, "write"),
        ({"include": ["lm_head.weight"]}, "include"),
        ({"exclude": ["*.0.mlp.*"]}, "exclude"),
        ({"depth": ["*.0.*=3"]}, "depth_overrides"),
    ],
)
def test_other_settings_are_refused_with_what_differs(tmp_path, unfinished, changed, named):
    source, out = unfinished
    before = hashes(out)
    finished = tmp_path / "finished"
    quantize(str(source), ["uniform-d2"], finished)
    arguments = {"configs": ["uniform-d2"]} | changed
    configs = arguments.pop("configs")
    with pytest.raises(OutputError, match=named):
        quantize(str(source), configs, out, **arguments)
    assert hashes(out) == before
    if configs != ["uniform-d1"]:
        with pytest.raises(OutputError, match=named):
            quantize(str(source), configs, finished, **arguments)
    quantize(str(source), ["uniform-d2"], out)
    assert result_hashes(out) == result_hashes(finished)


def test_another_version_of_the_tool_is_refused(monkeypatch, unfinished):
    source, out = unfinished
    monkeypatch.setattr("tritllm.quantizer.fingerprint.__version__", "0.0.9")
    with pytest.raises(OutputError, match=r"tool_version: 0\.1\.0 -> 0\.0\.9"):
        quantize(str(source), ["uniform-d2"], out)


def test_a_changed_config_of_the_source_is_refused(unfinished):
    source, out = unfinished
    config = json.loads((source / "config.json").read_text()) | {"rope_theta": 5}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(OutputError, match="source_config"):
        quantize(str(source), ["uniform-d2"], out)


@pytest.mark.parametrize("shard", ["model-00001-of-00002", "model-00002-of-00002"])
def test_a_changed_shard_is_refused(unfinished, shard):
    source, out = unfinished
    path = source / f"{shard}.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
    with pytest.raises(OutputError, match=rf"shards\.{shard}\.safetensors\.modified"):
        quantize(str(source), ["uniform-d2"], out)


@pytest.mark.usefixtures("small_commits")
def test_a_shard_changed_behind_its_time_stamp_is_noticed_on_reading(tmp_path):
    source = write_family(tmp_path / "source", "llama")
    out = tmp_path / "out"
    with pytest.raises(InterruptedRunError):
        quantize(str(source), ["uniform-d2"], out, on_progress=interrupted_after(14))
    path = source / "model.safetensors"
    stamp = path.stat().st_mtime_ns
    length = int.from_bytes(path.read_bytes()[:8], "little")
    data = bytearray(path.read_bytes())
    data[8 + length + 100] ^= 1  # in a tensor that is finished
    path.write_bytes(data)
    os.utime(path, ns=(stamp, stamp))
    with pytest.raises(SourceError, match=r"model\.safetensors: changed since this run began"):
        quantize(str(source), ["uniform-d2"], out)


@pytest.mark.usefixtures("small_commits")
@pytest.mark.parametrize("loss", ["deleted", "cut"])
@pytest.mark.parametrize("tensors", [6, 14], ids=["first shard", "second shard"])
def test_output_that_went_missing_is_not_filled_with_zeros(tmp_path, loss, tensors):
    source = write_family(tmp_path / "source", "llama", shards=2)
    out = tmp_path / "out"
    with pytest.raises(InterruptedRunError):
        quantize(str(source), ["uniform-d2"], out, on_progress=interrupted_after(tensors))
    shard = out / "uniform-d2/packed.partial/model-00001-of-00002.safetensors"
    if loss == "deleted":
        shard.unlink()
    else:
        os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(OutputError, match=r"model-00001-of-00002\.safetensors: gone or changed"):
        quantize(str(source), ["uniform-d2"], out)
    assert not (out / "uniform-d2/packed").exists()


# A finished output


def test_a_finished_run_again_changes_nothing(tmp_path, source):
    first = quantize(str(source), CONFIGS, tmp_path / "out")
    before = hashes(tmp_path / "out")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    steps = []
    assert quantize(str(source), CONFIGS, tmp_path / "out", on_progress=steps.append) == first
    assert steps == []
    assert hashes(tmp_path / "out") == before
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == stamps


def test_a_finished_run_whose_folder_is_gone_is_not_called_finished(tmp_path, source):
    quantize(str(source), CONFIGS, tmp_path / "out")
    shutil.rmtree(tmp_path / "out/uniform-d3/packed")
    with pytest.raises(OutputError, match="uniform-d3/packed: is gone"):
        quantize(str(source), CONFIGS, tmp_path / "out")


@pytest.mark.parametrize("content", ["[]", "{}", "nonsense", '{"fingerprint": 3}'])
def test_a_foreign_report_is_refused(tmp_path, source, content):
    (tmp_path / "out/uniform-d1").mkdir(parents=True)
    (tmp_path / "out/uniform-d1/report.json").write_text(content)
    with pytest.raises(OutputError, match=r"report\.json: not a report"):
        quantize(str(source), ["uniform-d1"], tmp_path / "out")
    assert hashes(tmp_path / "out").keys() == {"uniform-d1/report.json"}


# Two at once


def test_two_runs_into_one_folder_at_once_are_refused(tmp_path, source, uninterrupted):
    out = tmp_path / "out"
    refusals = []

    def second_run(_):
        if not refusals:
            with pytest.raises(OutputError, match="another run is writing here") as raised:
                quantize(str(source), CONFIGS, out)
            refusals.append(raised.value)

    quantize(str(source), CONFIGS, out, on_progress=second_run)
    assert len(refusals) == 1
    assert result_hashes(out) == uninterrupted


def test_another_process_holding_the_folder_is_noticed(tmp_path, source, command_line):
    out = tmp_path / "out"
    with RunLock(out):
        done = command_line(
            "quantize", "--model", source, "--configs", "uniform-d1", "--out", out, expect=1
        )
    assert done.stderr == f"error: {out}: another run is writing here; wait for it\n"


def test_verify_of_an_unfinished_output_says_so(tmp_path, source):
    out = tmp_path / "out"
    with pytest.raises(InterruptedRunError):
        quantize(str(source), CONFIGS, out, on_progress=interrupted_after(20))
    with pytest.raises(tritllm.FormatError, match="incomplete"):
        verify(out / "uniform-d1/packed.partial")
