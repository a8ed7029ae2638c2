"""Shards done apart, and taken over: whoever dies, or lives too long, the bytes are the same."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.attempts import WorkersHere, finish_attempt, plan_of
from support.model_folders import hashes, llama, result_hashes, shard_names, split, write_family

from tritllm.errors import OutputError, SourceError
from tritllm.format.safetensors_header import Header
from tritllm.quantizer import shard_pass
from tritllm.quantizer.attempts import ATTEMPTS, Attempt, quantize_shard
from tritllm.quantizer.journal import NAME, Journal
from tritllm.quantizer.quantize import quantize
from tritllm.quantizer.run_lock import FOLDER, RunLock
from tritllm.storage.model_files import LocalFiles

CONFIGS = ("uniform-d1", "uniform-d3")
FIRST, SECOND = shard_names(2)
RENAMES = 2 * len(CONFIGS)  # when a shard is adopted: packed and model of each config


class InterruptedRunError(Exception):
    """Raised in the middle of a run."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "source"
    return write_family(folder, "llama", shards=2, dtype=np.float32)


@pytest.fixture(scope="module")
def whole(source):
    """The files of one machine's run."""
    quantize(str(source), CONFIGS, source.parent / "whole")
    return result_hashes(source.parent / "whole")


def begun(plan, out: Path, shard: str) -> Attempt:
    """An attempt of a run whose driver has died since."""
    with RunLock(out), Journal(out, plan.fingerprint):
        return Attempt.begin(plan, out, shard)


def times_left_out(report: dict) -> dict:
    return {k: v for k, v in report.items() if k not in ("seconds", "peak_memory_bytes")}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"codec": "v2", "dtype": "bfloat16"},
        {"write": ["packed"], "depth": ["*.0.*=4"]},
        {"write": ["model"], "exclude": ["*.1.*"]},
    ],
)
def test_the_same_bytes_and_reports_as_one_machine(tmp_path, source, options):
    here = quantize(str(source), CONFIGS, tmp_path / "here", **options)
    apart = quantize(str(source), CONFIGS, tmp_path / "apart", workers=WorkersHere(), **options)
    assert result_hashes(tmp_path / "apart") == result_hashes(tmp_path / "here")
    assert [*map(times_left_out, apart)] == [*map(times_left_out, here)]
    assert apart[0]["peak_memory_bytes"] == 1 << 60  # the most that any process took
    assert {path.name for path in (tmp_path / "apart").iterdir()} == set(CONFIGS)


def test_a_finished_run_asks_for_no_workers(tmp_path, source):
    class Unwanted(WorkersHere):
        def __enter__(self):
            raise AssertionError

    quantize(str(source), CONFIGS, tmp_path / "out")
    quantize(str(source), CONFIGS, tmp_path / "out", workers=Unwanted())


# Stopped at every step at which a shard takes its place


@pytest.mark.parametrize("point", range(2 * (RENAMES + 1)))
def test_stopped_while_a_shard_takes_its_place(tmp_path, monkeypatch, source, whole, point):
    """Between two renames, and between the last and the record in the journal."""
    count = 0

    def stop_at_point():
        nonlocal count
        count += 1
        if count > point:
            raise InterruptedRunError

    replace, add = os.replace, Journal.add

    def counted_replace(*arguments):
        stop_at_point()
        replace(*arguments)

    def counted_add(journal, records):
        if ATTEMPTS not in journal.path.parts:
            stop_at_point()
        add(journal, records)

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", counted_replace)
        patched.setattr(Journal, "add", counted_add)
        with pytest.raises(InterruptedRunError):
            quantize(str(source), CONFIGS, out, workers=WorkersHere())
    assert not list(out.glob("*/packed"))
    steps = []
    workers = WorkersHere() if point % 2 else None
    quantize(str(source), CONFIGS, out, workers=workers, on_progress=steps.append)
    assert result_hashes(out) == whole
    # What was finished is not done again: the second shard, which came first, or both.
    assert len(steps) == (len(split(llama(), 2)[0]) if point <= RENAMES else 0)


@pytest.mark.parametrize("first", ["one machine", "workers"])
def test_begun_by_one_way_and_ended_by_the_other(tmp_path, monkeypatch, source, whole, first):
    monkeypatch.setattr(shard_pass, "COMMIT_BYTES", 4096)
    ways = [None, WorkersHere()] if first == "one machine" else [WorkersHere(), None]
    for tensors in range(1, len(llama()), 3):
        seen = []

        def stop(step, seen=seen, tensors=tensors):
            seen.append(step)
            if len(seen) == tensors:
                raise InterruptedRunError

        out = tmp_path / f"out-{tensors}"
        with pytest.raises(InterruptedRunError):
            quantize(str(source), CONFIGS, out, workers=ways[0], on_progress=stop)
        quantize(str(source), CONFIGS, out, workers=ways[1])
        assert result_hashes(out) == whole
        shutil.rmtree(out)


# What a dead driver left


def test_a_finished_attempt_of_a_dead_driver_is_taken_over(tmp_path, source, whole):
    plan, out = plan_of(source, *CONFIGS), tmp_path / "out"
    finish_attempt(plan, begun(plan, out, SECOND))
    begun(plan, out, FIRST)  # not worked on
    steps = []
    quantize(str(source), CONFIGS, out, on_progress=steps.append)
    assert {step.part.tensor.entry.name for step in steps} == set(
        plan.source.shards[0].header.entries
    )
    assert result_hashes(out) == whole
    assert {path.name for path in out.iterdir()} == set(CONFIGS)


@pytest.mark.parametrize("state", ["in the middle", "torn", "damaged", "no journal", "foreign"])
def test_any_other_attempt_is_removed(tmp_path, monkeypatch, source, whole, state):
    monkeypatch.setattr(shard_pass, "COMMIT_BYTES", 4096)
    plan, out = plan_of(source, *CONFIGS), tmp_path / "out"
    attempt = begun(plan, out, SECOND)
    journal = attempt.folder / FOLDER / NAME
    if state == "in the middle":
        steps = quantize_shard(plan, SECOND, attempt.folder, 1)
        for _ in range(4):
            next(steps)
        steps.close()
    else:
        finish_attempt(plan, attempt)
    lines = journal.read_bytes().splitlines(keepends=True)
    if state == "torn":
        journal.write_bytes(b"".join(lines)[:-1])
    elif state == "damaged":
        journal.write_bytes(b"\0\0\n" + b"".join(lines))
    elif state == "no journal":
        journal.unlink()
    elif state == "foreign":
        other = json.dumps(plan.fingerprint | {"codec": "v2"}).encode() + b"\n"
        journal.write_bytes(other + b"".join(lines[1:]))
    for path in attempt.folder.rglob("*.safetensors"):
        path.write_bytes(b"\1" * path.stat().st_size)  # never to be seen
    quantize(str(source), CONFIGS, out)
    assert result_hashes(out) == whole
    assert {path.name for path in out.iterdir()} == set(CONFIGS)


# A worker that lives longer than its run


def test_a_worker_taken_for_dead_does_no_harm_while_another_does_its_shard(tmp_path, source, whole):
    plan, out = plan_of(source, *CONFIGS), tmp_path / "out"
    late = begun(plan, out, SECOND)
    steps = quantize_shard(plan, SECOND, late.folder, 1)
    next(steps)

    seen = []

    def go_on(step):
        seen.append(step)
        if len(seen) in (3, 12):  # the late one's next tensor, while the run does the same shard
            next(steps, None)

    quantize(str(source), CONFIGS, out, on_progress=go_on, workers=WorkersHere())
    for _ in steps:  # it comes to its end, in files that have no name any more
        pass
    assert not late.is_finished(plan)
    assert result_hashes(out) == whole
    assert {path.name for path in out.iterdir()} == set(CONFIGS)


def test_a_worker_of_a_run_that_was_deleted_cannot_reach_the_next(tmp_path, source):
    plan, out = plan_of(source, "uniform-d1"), tmp_path / "out"
    late = begun(plan, out, SECOND)
    steps = quantize_shard(plan, SECOND, late.folder, 1)
    next(steps)
    shutil.rmtree(out)
    quantize(str(source), ["uniform-d2"], tmp_path / "expected")
    quantize(str(source), ["uniform-d2"], out, on_progress=lambda _: next(steps, None))
    for _ in steps:
        pass
    assert result_hashes(out) == result_hashes(tmp_path / "expected")
    with pytest.raises(OutputError, match="not seen here"):  # nor begin
        next(quantize_shard(plan, SECOND, late.folder, 1))
    assert {path.name for path in out.iterdir()} == {"uniform-d2"}


class LockThatReachesNobody(RunLock):
    """As on a file system whose locks hold for one machine."""

    def _acquire(self, out: Path) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = SimpleNamespace(release=lambda: None)
        return True


@pytest.mark.parametrize("tensors", [3, 14])
def test_of_two_drivers_the_first_stops_where_no_lock_reaches(
    tmp_path, monkeypatch, source, whole, tensors
):
    monkeypatch.setattr("tritllm.quantizer.quantize.RunLock", LockThatReachesNobody)
    out, seen = tmp_path / "out", []

    def second_run(step):
        seen.append(step)
        if len(seen) == tensors:
            quantize(str(source), CONFIGS, out, workers=WorkersHere())

    with pytest.raises(OutputError, match="another run has begun in it"):
        quantize(str(source), CONFIGS, out, workers=WorkersHere(), on_progress=second_run)
    assert result_hashes(out) == whole


# What a worker sees


def test_a_worker_without_the_outputs_folder_says_so(tmp_path, source):
    plan = plan_of(source, "uniform-d1")
    attempt = begun(plan, tmp_path / "out", FIRST)
    elsewhere = tmp_path / "elsewhere" / attempt.folder.name
    with pytest.raises(OutputError, match=r"elsewhere.*: not seen here; the output must be in a"):
        next(quantize_shard(plan, FIRST, elsewhere, 1))
    assert not elsewhere.exists()


def on_another_machine(plan, folder: Path):
    """The plan where the source's path shows another folder."""
    files = LocalFiles(folder, name=plan.source.files.name)
    return dataclasses.replace(plan, source=dataclasses.replace(plan.source, files=files))


def test_a_worker_without_the_source_says_so(tmp_path, source):
    plan = plan_of(source, "uniform-d1")
    attempt = begun(plan, tmp_path / "out", FIRST)
    blind = on_another_machine(plan, tmp_path / "nothing")
    with pytest.raises(SourceError, match=f"{source}/{FIRST}: not seen here; the source must be"):
        next(quantize_shard(blind, FIRST, attempt.folder, 1))


@pytest.mark.parametrize(("change", "named"), [("time", "modified"), ("header", "header_sha256")])
def test_a_worker_with_another_source_says_what_differs(tmp_path, source, change, named):
    plan = plan_of(source, "uniform-d1")
    attempt = begun(plan, tmp_path / "out", FIRST)
    shutil.copytree(source, tmp_path / "copy")  # with its times
    path = tmp_path / "copy" / FIRST
    stamp = path.stat().st_mtime_ns
    if change == "header":
        data = path.read_bytes()
        path.write_bytes(data.replace(b'"pt"', b'"tp"', 1))
    os.utime(path, ns=(stamp, stamp + (change == "time")))
    other = on_another_machine(plan, tmp_path / "copy")
    with pytest.raises(SourceError, match=f"not the file that the run began with .*{named}"):
        next(quantize_shard(other, FIRST, attempt.folder, 1))
    os.utime(path, ns=(stamp, stamp))
    if change == "time":
        finish_attempt(other, attempt)
        assert attempt.is_finished(plan)


def test_a_full_disk_of_a_worker(tmp_path, monkeypatch, source):
    plan = plan_of(source, "uniform-d1")
    attempt = begun(plan, tmp_path / "out", FIRST)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OutputError, match="No space left on device; make room and run the same"):
        next(quantize_shard(plan, FIRST, attempt.folder, 1))


def test_what_is_not_finished_is_not_adopted(tmp_path, source):
    plan, out = plan_of(source, "uniform-d1"), tmp_path / "out"
    attempt = begun(plan, out, FIRST)
    with Journal(out, plan.fingerprint) as journal:
        with pytest.raises(OutputError, match="the machines do not share this folder, or another"):
            attempt.adopt(plan, journal)
        assert journal.records == []
        finish_attempt(plan, attempt)
        (made,) = attempt.folder.glob("*/packed.partial/*.safetensors")
        os.truncate(made, made.stat().st_size - 1)
        with pytest.raises(OutputError, match="which is not what was written"):
            attempt.adopt(plan, journal)
        assert journal.records == []


def test_a_plan_is_the_same_in_a_process_that_works_elsewhere(tmp_path, monkeypatch, source):
    import pickle

    monkeypatch.chdir(source.parent)
    plan = pickle.loads(pickle.dumps(plan_of(Path("source"), "uniform-d1")))
    monkeypatch.chdir(tmp_path)
    attempt = begun(plan, tmp_path / "out", FIRST)
    finish_attempt(plan, attempt)
    assert attempt.is_finished(plan)
    assert isinstance(plan.model[FIRST], Header)
    assert hashes(attempt.folder)
