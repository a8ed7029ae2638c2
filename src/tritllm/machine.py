"""Processors and memory as this process may use them, which in a container is less than there is.

Limits of control groups (versions 1 and 2, of the process's own group and of those above it), the
scheduler's affinity and a quota of processor time are taken into account. Functions take `root`,
the folder below which `proc` and `sys` lie, so that tests can show them another machine.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tritllm.errors import TritError

_ROOT = Path("/")
_UNLIMITED_V1 = 1 << 60  # version 1 writes "no limit" as a number about as large as an address


def processors(root: Path = _ROOT) -> int:
    """How many threads can run at once: at least 1, a part of a processor counts as one."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    for folder in _group_folders("cpu", root):
        numbers = _numbers(folder / "cpu.max") or (
            _numbers(folder / "cpu.cfs_quota_us") + _numbers(folder / "cpu.cfs_period_us")
        )
        quota, period = numbers if len(numbers) == 2 else (0, 0)
        if quota > 0 and period > 0:
            count = min(count, math.ceil(quota / period))
    return max(count, 1)


def total_memory(root: Path = _ROOT) -> int:
    """Bytes of memory that the process may use when nothing else uses any.

    Raises TritError on a system that does not say, without psutil.
    """
    limits = [limit for limit, _ in _memory_groups(root)]
    return min([_of_system("MemTotal", "total", root), *limits])


def available_memory(root: Path = _ROOT) -> int:
    """Bytes of memory that the process can take now without swapping or being killed.

    Raises TritError on a system that does not say, without psutil.
    """
    left = [max(limit - used, 0) for limit, used in _memory_groups(root)]
    return min([_of_system("MemAvailable", "available", root), *left])


def _memory_groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use in bytes of each control group that has a limit.

    Cached file pages do not count as use: they give way when memory is asked for.
    """
    for folder in _group_folders("memory", root):
        limits = [
            limit[0]
            for name in ("memory.max", "memory.high", "memory.limit_in_bytes")
            if (limit := _numbers(folder / name)) and limit[0] < _UNLIMITED_V1
        ]
        used = _numbers(folder / "memory.current") or _numbers(folder / "memory.usage_in_bytes")
        if limits and used:
            text = _text(folder / "memory.stat")
            totals = re.findall(r"^total_(?:in)?active_file (\d+)$", text, re.MULTILINE)
            cached = totals or re.findall(r"^(?:in)?active_file (\d+)$", text, re.MULTILINE)
            yield min(limits), max(used[0] - sum(map(int, cached)), 0)


def _group_folders(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the process's control group and of those above it, for a controller."""
    mounts = _mounts(root)
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if controller not in names.split(",") and names != "":
            continue
        for mounted_root, point in mounts.get(controller if names else "", []):
            folder = root / point.lstrip("/")
            try:  # the part of the hierarchy that is mounted may begin below its top
                below = PurePosixPath(path).relative_to(mounted_root).parts
            except ValueError:
                below = ()
            if ".." not in below:
                for length in range(len(below), -1, -1):
                    yield folder.joinpath(*below[:length])


def _mounts(root: Path) -> dict[str, list[tuple[str, str]]]:
    """(root within the hierarchy, mount point) by controller; version 2's is the empty name."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, system = line.partition(" - ")
        fields, types = mount.split(), system.split()
        if len(fields) < 5 or len(types) < 3 or types[0] not in ("cgroup", "cgroup2"):
            continue
        for name in [""] if types[0] == "cgroup2" else types[2].split(","):
            found.setdefault(name, []).append((fields[3], fields[4]))
    return found


def _of_system(field: str, attribute: str, root: Path) -> int:
    """A field of /proc/meminfo, or what psutil says where there is none; bytes."""
    match = re.search(rf"^{field}:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    if match:
        return int(match[1]) * 1024
    try:
        import psutil
    except ImportError:
        raise TritError(
            "how much memory there is cannot be told here without psutil: pip install psutil"
        ) from None
    return int(getattr(psutil.virtual_memory(), attribute))


def _numbers(path: Path) -> tuple[int, ...]:
    """The integers in a file; none if it is absent, or says "max" or anything else."""
    words = _text(path).split()
    try:
        return tuple(map(int, words))
    except ValueError:
        return ()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
