"""What can be known of a cluster without one: addresses, what machines offer, versions, deaths."""

from __future__ import annotations

import importlib.util
import pickle
import socket
import subprocess
import sys
from typing import NamedTuple

import pytest
from support.attempts import finish_attempt, plan_of
from support.model_folders import shard_names, write_family

from tritllm import quantize
from tritllm.cluster import entry
from tritllm.cluster.connection import connect
from tritllm.cluster.fan_out import TRIES, FanOut
from tritllm.cluster.nodes import processors_a_shard
from tritllm.cluster.task import steps
from tritllm.errors import OutputError, SourceError, TritError
from tritllm.quantizer.attempts import Attempt
from tritllm.quantizer.journal import Journal
from tritllm.quantizer.plan import Plan
from tritllm.quantizer.quantize import quantize as core_quantize
from tritllm.quantizer.run_lock import RunLock
from tritllm.quantizer.shard_pass import Progress

GB = 10**9
needs_ray = pytest.mark.usefixtures("ray")


@pytest.fixture
def ray():
    return pytest.importorskip("ray", reason="needs ray")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_family(tmp_path_factory.mktemp("models") / "source", "llama", shards=2)


# Addresses


@pytest.fixture
def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@needs_ray
@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("ray://head:10001", "--ray ray://head:10001: a Ray client cannot write to the cluster's"),
        ("head", "--ray head: 'head' is neither auto nor HOST:PORT"),
        ("head:many", "neither auto nor HOST:PORT"),
        ("", "--ray : '' is neither auto nor HOST:PORT"),
    ],
)
def test_an_address_that_cannot_be_one(address, line):
    with pytest.raises(TritError) as raised:
        connect(address)
    assert line in str(raised.value)


@needs_ray
def test_nothing_is_written_where_no_cluster_answers(tmp_path, source, closed_port):
    address = f"127.0.0.1:{closed_port}"
    with pytest.raises(TritError, match=f"^--ray {address}: nothing answers at {address} "):
        quantize(str(source), ["uniform-d1"], tmp_path / "out", ray=address)
    assert not (tmp_path / "out").exists()


@needs_ray
@pytest.mark.parametrize("told_by", ["RAY_ADDRESS", "the last ray start"])
def test_auto_finds_a_cluster_that_is_gone(tmp_path, monkeypatch, closed_port, told_by):
    """Ray itself would wait for it for minutes."""
    address = f"127.0.0.1:{closed_port}"
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", address if told_by == "RAY_ADDRESS" else "auto")
    if told_by != "RAY_ADDRESS":
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray/ray_current_cluster").write_text(address)
    with pytest.raises(TritError, match=f"^--ray auto: nothing answers at {address} "):
        connect("auto")


def test_auto_where_there_is_no_cluster_says_how_to_start_one(tmp_path, monkeypatch, ray):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def as_ray_does(**_):
        raise ConnectionError("Could not find any running Ray instance. Please specify ...")

    monkeypatch.setattr(ray, "init", as_ray_does)
    with pytest.raises(TritError, match=r"^--ray auto: no Ray cluster runs here; start one with"):
        connect("auto")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.1.0\n"),
         r"Version mismatch: The cluster was started with:$"),
        (ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379"),
         r"Failed to .*, though .* answers; this machine must be one of the cluster's"),
    ],
)  # fmt: skip
def test_a_cluster_that_cannot_be_joined_is_named_in_one_line(monkeypatch, ray, error, line):
    def as_ray_does(**_):
        raise error

    monkeypatch.setattr(ray, "init", as_ray_does)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(TritError, match=r"^--ray 127\.0\.0\.1:\d+: " + line):
            connect(f"127.0.0.1:{listener.getsockname()[1]}")


# What --ray goes with


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch, source):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ray" else find(name)
    )
    with pytest.raises(TritError, match=r"^--ray needs ray: pip install 'tritllm\[ray\]'$"):
        quantize(str(source), ["uniform-d1"], tmp_path / "out", ray="auto")


@pytest.mark.parametrize("option", ["calibrate", "qat"])
def test_what_runs_the_model_is_refused(tmp_path, source, option):
    (tmp_path / "text").write_text("words")
    with pytest.raises(TritError, match=rf"^--{option} runs the model, on one machine; leave --ra"):
        quantize(
            str(source), ["uniform-d1"], tmp_path / "out", ray="auto",
            **{option: tmp_path / "text"},
        )  # fmt: skip


@needs_ray
def test_neither_a_dry_run_nor_a_finished_one_needs_the_cluster(tmp_path, source, closed_port):
    out, address = tmp_path / "out", f"127.0.0.1:{closed_port}"
    assert quantize(str(source), ["uniform-d1"], out, ray=address, dry_run=True) == []
    reports = core_quantize(str(source), ["uniform-d1"], out)
    assert quantize(str(source), ["uniform-d1"], out, ray=address) == reports


# What machines offer


def machines(*offers: tuple[float, float]) -> list[dict]:
    """Processors and memory in GB of each."""
    return [{"Resources": {"CPU": cpus, "memory": gigas * GB}} for cpus, gigas in offers]


@pytest.mark.parametrize(
    ("offers", "shards", "threads", "expected"),
    [
        ([(1, 8), (1, 8)], 4, None, 1),
        ([(16, 64), (16, 64)], 37, None, 1),  # more shards than processors
        ([(64, 256), (64, 256)], 37, None, 3),  # all at once
        ([(64, 256), (8, 32)], 2, None, 8),  # no more than the smallest has
        ([(0, 256), (8, 32)], 2, None, 4),  # the head does nothing
        ([(64, 1), (8, 32)], 2, None, 4),  # too little memory there
        ([(16, 64), (4, 64)], 2, 12, 12),
    ],
)
def test_processors_a_shard(offers, shards, threads, expected):
    assert processors_a_shard(machines(*offers), shards, 2 * GB, threads) == expected


@pytest.mark.parametrize(
    ("offers", "threads", "line"),
    [
        ([(0, 64)], None, "no machine with a processor to work with; join some with `ray start"),
        ([(8, 1), (0, 64)], None, "about 2.0 GB of memory and no machine of the Ray cluster offers "
         "more than 1.0 GB"),
        ([(8, 64), (16, 1)], 12, "--threads 12: no machine of the Ray cluster with enough memory "
         "has more than 8 processors"),
    ],
)  # fmt: skip
def test_what_no_machine_offers_is_refused_and_not_waited_for(offers, threads, line):
    with pytest.raises(TritError) as raised:
        processors_a_shard(machines(*offers), 4, 2 * GB, threads)
    assert line in str(raised.value)


# What a worker runs


@pytest.fixture
def somewhere(monkeypatch):
    monkeypatch.setattr(entry, "place", lambda: ("box7", "f00d"))


@pytest.mark.usefixtures("somewhere")
@pytest.mark.parametrize("package", ["tritllm", "numpy", "ml_dtypes"])
def test_a_worker_of_other_versions_refuses(package):
    expected = entry.versions() | {package: "9.9"}
    messages = list(entry.shard_task(expected, b"not looked at", "shard", "folder", 1))
    assert messages[0] == ("begun", "box7", "f00d")
    ((kind, error, line),) = messages[1:]
    assert (kind, error) == ("failed", "TritError")
    there = entry.versions()[package]
    assert line.startswith(f"{package} {there} is installed there and 9.9 where the run was")


# What Ray does with the task: it is unpickled where there is no tritllm.
WITHOUT_TRITLLM = """
import pickle, sys
sys.modules["tritllm"] = None
task = pickle.loads(sys.stdin.buffer.read())
task.__globals__["place"] = lambda: ("box7", "f00d")
print(list(task({"tritllm": "0.1.0", "numpy": "", "ml_dtypes": ""}, b"", "shard", "folder", 1)))
"""


def test_a_worker_without_tritllm_says_so(ray):
    ray.cloudpickle.register_pickle_by_value(entry)
    try:
        task = ray.cloudpickle.dumps(entry.shard_task)
    finally:
        ray.cloudpickle.unregister_pickle_by_value(entry)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITLLM], input=task, capture_output=True, check=True
    )
    said = done.stdout.decode()
    assert "tritllm none (import of tritllm halted; None in sys.modules) is installed" in said


@pytest.mark.usefixtures("somewhere")
def test_a_worker_tells_of_each_tensor_and_of_its_memory(tmp_path, source):
    plan = plan_of(source, "uniform-d1")
    shard = shard_names(2)[0]
    with RunLock(tmp_path), Journal(tmp_path, plan.fingerprint):
        attempt = Attempt.begin(plan, tmp_path, shard)
    payload = pickle.dumps(plan)
    arguments = (entry.versions(), payload, shard, str(attempt.folder), 1)
    begun, *told, done = entry.shard_task(*arguments)
    assert begun == ("begun", "box7", "f00d")
    assert [kind for kind, _ in told] == ["step"] * len(plan.tensors[shard])
    assert told[-1][1].done_bytes == sum(t.entry.nbytes for t in plan.tensors[shard])
    assert done[0] == "done"
    assert done[1] > 1 << 20
    assert attempt.is_finished(plan)
    attempt.discard()
    *_, failed = entry.shard_task(*arguments)
    assert failed[:2] == ("failed", "OutputError")
    assert "not seen here" in failed[2]


# What the driver makes of it


class Fanned(NamedTuple):
    """started, asked: the attempts begun, and how many losses were known."""

    fan: FanOut
    plan: Plan
    journal: Journal
    started: list[Attempt]
    asked: list[int]
    notices: list[str]
    shown: list[Progress]


@pytest.fixture
def fan_out(tmp_path, source):
    """A run of two shards, which are handed out as streams 1 and 2."""
    plan, out = plan_of(source, "uniform-d1"), tmp_path / "out"
    notices, shown, started, asked = [], [], [], []

    def start(attempt, losses):
        started.append(attempt)
        asked.append(losses)
        return len(started)

    with RunLock(out), Journal(out, plan.fingerprint) as journal:
        fan = FanOut(plan, out, journal, start, shown.append, notices.append)
        for shard in shard_names(2):
            fan.hand_out(shard)
        yield Fanned(fan, plan, journal, started, asked, notices, shown)


def test_a_shard_is_given_up_after_a_few_dead_workers(fan_out):
    fan, started, notices = fan_out.fan, fan_out.started, fan_out.notices
    first = shard_names(2)[0]
    for stream in (1, *range(3, TRIES + 1)):
        fan.receive(stream, ("begun", f"box{stream}", "f00d"))
        fan.worker_died(stream, "power")
        assert not started[stream - 1].folder.exists()
        assert started[-1].folder.exists()
    assert notices[0] == f"{first}: its worker died on the machine box1 (power); it is done anew"
    with pytest.raises(TritError, match=f"{first}: its worker died {TRIES} times, at last before "):
        fan.worker_died(TRIES + 1, "power")
    assert {attempt.shard for attempt in started} == set(shard_names(2))


def test_a_lost_machines_shard_and_what_has_not_begun_are_handed_out_again(fan_out):
    fan, started = fan_out.fan, fan_out.started
    cancelled = []
    fan.see({"a", "b"}, cancelled.append)
    fan.receive(1, ("begun", "box1", "b"))
    fan.see({"a", "b", "c"}, cancelled.append)  # one more
    assert len(started) == 2
    fan.see({"a", "c"}, cancelled.append)
    assert fan_out.notices == [
        f"{started[0].shard}: its worker died on the machine box1 (Ray has lost the machine); "
        "it is done anew"
    ]
    assert cancelled == [2]
    assert [attempt.shard for attempt in started] == [*shard_names(2), *shard_names(2)]
    assert [attempt.folder.exists() for attempt in started] == [False, False, True, True]
    assert fan_out.asked == [0, 0, 1, 1]
    fan.receive(3, ("begun", "box2", "c"))
    fan.see({"a", "c"}, cancelled.append)
    assert len(started) == 4


def test_a_machine_without_the_native_library_is_told_of_once(monkeypatch, fan_out):
    monkeypatch.setattr("tritllm.native.available", lambda: False)
    monkeypatch.setattr("tritllm.native.load_error", lambda: "no libtritllm.so")
    payload, folder = pickle.dumps(fan_out.plan), str(fan_out.started[0].folder)
    notice = next(steps(payload, fan_out.started[0].shard, folder, 1))
    for stream in (1, 2):
        fan_out.fan.receive(stream, ("begun", "box7", "f00d"))
        fan_out.fan.receive(stream, notice)
    assert fan_out.notices == [
        "much slower, without the native library: no libtritllm.so (on the machine box7)"
    ]


def test_a_workers_error_is_raised_with_its_machine(fan_out):
    fan = fan_out.fan
    fan.receive(1, ("begun", "box7", "f00d"))
    with pytest.raises(SourceError, match=r"^shard: damaged \(on the machine box7\)$"):
        fan.receive(1, ("failed", "SourceError", "shard: damaged"))


def test_a_worker_that_says_it_is_done_without_a_trace_is_not_believed(fan_out):
    fan, journal = fan_out.fan, fan_out.journal
    with pytest.raises(OutputError, match="not to be seen"):
        fan.receive(1, ("done", 1))
    assert journal.records == []


def test_progress_counts_all_shards_and_takes_back_what_died(fan_out):
    fan, plan, journal, started, _, _, shown = fan_out
    first, second = shard_names(2)
    size = {name: sum(t.entry.nbytes for t in plan.tensors[name]) for name in (first, second)}
    (part, *_) = plan.parts(first)
    step = Progress(part, 100, 200)
    fan.receive(1, ("step", step))
    fan.receive(2, ("step", step))
    assert [step.done_bytes for step in shown] == [100, 200]
    fan.worker_died(2, "power")
    fan.receive(1, ("step", step))
    assert shown[-1].done_bytes == 100
    finish_attempt(plan, started[0])
    fan.receive(1, ("done", 7))
    assert {record["shard"] for record in journal.records} == {first}
    fan.receive(3, ("step", step))
    assert shown[-1].done_bytes == 200
    assert size[first] > 100
