"""Shards done by the two workers of a real Ray cluster, one of which is killed with `kill -9`.

The cluster and all that connects to it are in a process of their own: Ray leaves threads behind,
and other tests fork.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from support.model_folders import (
    hashes,
    llama,
    random_tensors,
    result_hashes,
    shard_names,
    split,
    write_model,
)

from tritllm import quantize
from tritllm.cluster import entry
from tritllm.errors import OutputError, TritError
from tritllm.quantizer.attempts import ATTEMPTS
from tritllm.quantizer.run_lock import FOLDER
from tritllm.quantizer.shard_pass import Progress

pytest.importorskip("ray", reason="needs ray")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")

CONFIGS = ("uniform-d1", "uniform-d3")
SHARDS = 3
CLUSTER: Any = None  # in the cluster's process


def start_cluster(folder: str) -> str:
    """Two machines, as Ray sees it, of one processor each; the address of the first's manager."""
    global CLUSTER
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_health_check_initial_delay_ms": "500",
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_failure_threshold": "3",
    }
    from ray._private.utils import get_ray_address_file
    from ray.cluster_utils import Cluster

    # Of a head with another folder than Ray's own nobody makes that one, where the address goes.
    Path(get_ray_address_file(None)).parent.mkdir(parents=True, exist_ok=True)
    head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": folder}
    CLUSTER = Cluster(initialize_head=True, head_node_args=head)
    CLUSTER.add_node(num_cpus=1)
    return CLUSTER.address


def stop_cluster() -> None:
    CLUSTER.shutdown()


def stopping_task(mark: str) -> Callable[..., Iterator[tuple[Any, ...]]]:
    """The worker's task, which once, after three tensors on the second machine, leaves its
    process's number in a file and waits to be killed. Ray pickles it by value.
    """
    (first_machine,) = CLUSTER.head_node.all_processes["raylet"]
    parent = first_machine.process.pid

    def task(expected, payload, shard, folder, threads):
        import os
        import time
        from pathlib import Path

        from tritllm.cluster.entry import shard_task

        messages = shard_task(expected, payload, shard, folder, threads)
        for number, message in enumerate(messages):
            yield message
            if number == 3 and os.getppid() != parent and not os.path.exists(mark):
                Path(f"{mark}.new").write_text(str(os.getpid()))
                os.rename(f"{mark}.new", mark)
                time.sleep(100)

    return task


def kill_marked(mark: Path, whole_machine: bool) -> None:
    """Kill the process that the file names, or the Ray process of its machine, with SIGKILL."""
    import psutil

    while not mark.exists():
        time.sleep(0.01)
    process = psutil.Process(int(mark.read_text()))
    os.kill(process.ppid() if whole_machine else process.pid, signal.SIGKILL)


def run(
    source: Path,
    out: Path,
    mark: Path | None = None,
    whole_machine: bool = False,
    second_run: bool = False,
) -> dict[str, Any]:
    """In the cluster's process: the reports, notices and progress of a run, the error's line, and
    what another run said that was started meanwhile.
    """
    found: dict[str, Any] = {"reports": [], "notices": [], "done": [], "error": "", "second": ""}
    task = entry.shard_task
    if mark is not None:
        task = stopping_task(str(mark))
        threading.Thread(target=kill_marked, args=(mark, whole_machine), daemon=True).start()

    def on_progress(step: Progress) -> None:
        found["done"].append(step.done_bytes)
        if second_run and not found["second"]:
            try:
                quantize(str(source), CONFIGS, out)
            except OutputError as error:
                found["second"] = str(error)

    try:
        with patch.object(entry, "shard_task", task):
            found["reports"] = quantize(
                str(source),
                CONFIGS,
                out,
                ray=CLUSTER.address,
                on_progress=on_progress,
                on_notice=found["notices"].append,
            )
    except TritError as error:
        found["error"] = str(error)
    return found


@pytest.fixture(scope="module")
def on_ray() -> Iterator[Callable[..., dict[str, Any]]]:
    """`run`, in the process of a cluster."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # sockets below take short paths alone
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(start_cluster, folder).result(120)
        try:
            yield lambda *arguments, **more: pool.submit(run, *arguments, **more).result(120)
        finally:
            pool.submit(stop_cluster).result(60)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    tensors = random_tensors(llama(hidden=64, inner=96, layers=3), np.float32)
    folder = tmp_path_factory.mktemp("models") / "source"
    return write_model(folder, {"model_type": "llama"}, split(tensors, SHARDS))


@pytest.fixture(scope="module")
def here(source):
    """The output of one machine."""
    out = source.parent / "here"
    quantize(str(source), CONFIGS, out)
    return out


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in report.items() if k not in ("seconds", "peak_memory_bytes")}


def check_same(out: Path, here: Path) -> None:
    """Every byte of two outputs, but for the times in their reports."""
    assert result_hashes(out) == result_hashes(here)
    assert hashes(out).keys() == hashes(here).keys()
    for config in CONFIGS:
        reports = [json.loads((each / config / "report.json").read_text()) for each in (out, here)]
        assert without_times(reports[0]) == without_times(reports[1])
        assert reports[0]["peak_memory_bytes"] > 0


def test_a_killed_workers_shard_is_done_anew_to_the_same_bytes(tmp_path, on_ray, source, here):
    out = tmp_path / "out"
    found = on_ray(source, out, tmp_path / "mark", second_run=True)
    assert not found["error"]
    offer, death = found["notices"]
    assert offer.startswith("3 shard(s) on a Ray cluster of 2 machine(s), each with 1 processor(s)")
    assert re.match(r"model-0000\d-of-00003\.safetensors: its worker died on the machine ", death)
    assert found["second"] == f"{out}: another run is writing here; wait for it"
    total = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    assert 0.9 * total < found["done"][-1] == max(found["done"]) < total
    assert any(b < a for a, b in pairwise(found["done"]))  # what died is not counted as done
    assert [r["config"] for r in found["reports"]] == list(CONFIGS)
    check_same(out, here)


def test_a_shard_with_a_fault_of_its_own_stops_the_run_in_one_line(tmp_path, on_ray):
    shards = split(random_tensors(llama(layers=3)), SHARDS)
    name = next(name for name in reversed(shards[1]) if name.endswith("proj.weight"))
    shards[1][name][1, 2] = np.nan
    source = write_model(tmp_path / "source", {"model_type": "llama"}, shards)
    out = tmp_path / "out"
    found = on_ray(source, out)
    assert found["error"].startswith(f"{shard_names(SHARDS)[1]}: tensor {name}: ")
    assert "(on the machine " in found["error"]
    assert len(found["notices"]) == 1  # not tried again
    assert not list(out.glob("*/packed"))


def test_a_killed_machines_shard_is_done_by_another(tmp_path, on_ray, source, here):
    """The last test here: one machine is left. The killed one's worker lives on, in the middle of
    the shard, and does no harm.
    """
    out = tmp_path / "out"
    found = on_ray(source, out, tmp_path / "mark", whole_machine=True)
    assert not found["error"]
    _, death = found["notices"]
    assert re.match(r"model-0000\d-of-00003\.safetensors: its worker died on the machine ", death)
    assert not (out / FOLDER / ATTEMPTS).exists()
    check_same(out, here)
