"""Processors and memory in containers, told from trees of files that are like real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tritllm.machine import available_memory, processors, total_memory

GB = 1 << 30
MEMINFO = f"MemTotal:       {64 * GB // 1024} kB\nMemAvailable:   {40 * GB // 1024} kB\n"
V2_MOUNT = "30 24 0:27 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1_MOUNTS = (
    "31 30 0:28 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "32 30 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
)

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="control groups are Linux's"
)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def eight_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def test_a_machine_without_limits(tmp_path, eight_processors):
    root = tree(tmp_path, {})
    assert (processors(root), total_memory(root), available_memory(root)) == (8, 64 * GB, 40 * GB)


def test_version_2_of_a_container_that_sees_its_own_group_as_the_top(tmp_path, eight_processors):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT.format(root="/"),
            "sys/fs/cgroup/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/memory.max": f"{4 * GB}\n",
            "sys/fs/cgroup/memory.high": "max\n",
            "sys/fs/cgroup/memory.current": f"{3 * GB}\n",
            "sys/fs/cgroup/memory.stat": f"anon {GB}\ninactive_file {GB}\nactive_file {GB // 2}\n",
        },
    )
    assert processors(root) == 3  # 2.5
    assert total_memory(root) == 4 * GB
    assert available_memory(root) == 4 * GB - (3 * GB - GB - GB // 2)


def test_version_2_takes_the_least_of_the_groups_above(tmp_path, eight_processors):
    group = "sys/fs/cgroup/kubepods.slice/pod1"
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/kubepods.slice/pod1/box\n",
            "proc/self/mountinfo": V2_MOUNT.format(root="/"),
            f"{group}/box/cpu.max": "max 100000\n",
            f"{group}/box/memory.max": "max\n",
            f"{group}/box/memory.current": f"{GB}\n",
            f"{group}/cpu.max": "400000 100000\n",
            f"{group}/memory.max": f"{8 * GB}\n",
            f"{group}/memory.high": f"{6 * GB}\n",
            f"{group}/memory.current": f"{5 * GB}\n",
        },
    )
    assert processors(root) == 4
    assert (total_memory(root), available_memory(root)) == (6 * GB, GB)


@pytest.mark.parametrize("shown", ["/docker/abc", "/"])
def test_version_1(tmp_path, eight_processors, shown):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/\n",
            "proc/self/mountinfo": V1_MOUNTS.format(root=shown),
        },
    )
    below = "" if shown != "/" else "docker/abc/"
    cpu, memory = (f"sys/fs/cgroup/{name}/{below}" for name in ("cpu,cpuacct", "memory"))
    tree(
        root,
        {
            f"{cpu}cpu.cfs_quota_us": "150000\n",
            f"{cpu}cpu.cfs_period_us": "100000\n",
            f"{memory}memory.limit_in_bytes": f"{2 * GB}\n",
            f"{memory}memory.usage_in_bytes": f"{GB}\n",
            f"{memory}memory.stat": f"inactive_file 1\ntotal_inactive_file {GB // 4}\n",
        },
    )
    assert processors(root) == 2
    assert total_memory(root) == 2 * GB
    assert available_memory(root) == GB + GB // 4


def test_version_1_without_limits(tmp_path, eight_processors):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/\n4:cpu,cpuacct:/\n",
            "proc/self/mountinfo": V1_MOUNTS.format(root="/"),
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GB}\n",
        },
    )
    assert (processors(root), available_memory(root)) == (8, 40 * GB)


def test_a_limit_above_what_the_machine_has_changes_nothing(tmp_path, eight_processors):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT.format(root="/"),
            "sys/fs/cgroup/cpu.max": "6400000 100000\n",
            "sys/fs/cgroup/memory.max": f"{512 * GB}\n",
            "sys/fs/cgroup/memory.current": f"{GB}\n",
        },
    )
    assert (processors(root), total_memory(root), available_memory(root)) == (8, 64 * GB, 40 * GB)


def test_a_group_that_uses_more_than_its_limit_has_nothing_left(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT.format(root="/"),
            "sys/fs/cgroup/memory.max": f"{GB}\n",
            "sys/fs/cgroup/memory.current": f"{2 * GB}\n",
        },
    )
    assert available_memory(root) == 0


@pytest.mark.parametrize("damage", ["", "nonsense", "0:", "\x00\xff", "0::/../../etc"])
def test_files_that_cannot_be_read_are_no_limit(tmp_path, eight_processors, damage):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": damage,
            "proc/self/mountinfo": damage + " - cgroup2 x y\n" + V2_MOUNT.format(root="/"),
            "sys/fs/cgroup/cpu.max": "100000\n",
            "sys/fs/cgroup/memory.max": "\n",
        },
    )
    assert (processors(root), available_memory(root)) == (8, 40 * GB)


def test_this_machine():
    assert 1 <= processors() <= (os.cpu_count() or 1)
    assert 0 < available_memory() <= total_memory()


def test_a_process_bound_to_one_processor_counts_one():
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from tritllm.machine import processors; print(processors())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "1\n", run.stderr
