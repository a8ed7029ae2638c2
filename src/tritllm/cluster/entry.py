"""What a worker runs first. Ray sends this file along, and not its name alone, since the tritllm of
a worker may be another one, or missing. So nothing of tritllm is imported before its version is
known to be the driver's.

Messages to the driver, in order: ("begun", machine, Ray's name for it); perhaps ("notice", a line);
("step", Progress) after each tensor; at last ("done", peak memory in bytes or None) or ("failed",
an error's class, its line).
"""

from __future__ import annotations

import importlib
import socket
from collections.abc import Iterator
from typing import Any

PACKAGES = ("tritllm", "numpy", "ml_dtypes")  # what bytes depend on


def versions() -> dict[str, str]:
    """By package, the version that is imported here; where there is none, why."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = str(importlib.import_module(package).__version__)
        except ImportError as error:
            found[package] = f"none ({error})"
    return found


def place() -> tuple[str, str]:
    """The name of this machine, and Ray's for it."""
    import ray

    return socket.gethostname(), ray.get_runtime_context().get_node_id()


def shard_task(
    expected: dict[str, str], payload: bytes, shard: str, folder: str, threads: int
) -> Iterator[tuple[Any, ...]]:
    """Do one shard on a worker.

    expected: the driver's `versions()`. payload: the pickled plan. folder: of the attempt.
    """
    yield "begun", *place()
    for package, version in versions().items():
        if version != expected[package]:
            line = (
                f"{package} {version} is installed there and {expected[package]} where the run "
                "was started; install the same, or other bytes could be written"
            )
            yield "failed", "TritError", line
            return
    from tritllm.cluster.task import steps

    yield from steps(payload, shard, folder, threads)
