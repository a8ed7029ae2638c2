"""A shard on a worker, once the worker's tritllm is known to be the driver's."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tritllm import native
from tritllm.codec import engine
from tritllm.errors import TritError
from tritllm.quantizer.attempts import quantize_shard
from tritllm.quantizer.report import peak_memory_bytes
from tritllm.quantizer.resources import resource_errors


def steps(payload: bytes, shard: str, folder: str, threads: int) -> Iterator[tuple[Any, ...]]:
    """The messages of `entry.shard_task` after the first."""
    try:
        with resource_errors():
            engine.check_environment()
            if not native.available():
                yield "notice", f"much slower, without the native library: {native.load_error()}"
            for step in quantize_shard(pickle.loads(payload), shard, Path(folder), threads):
                yield "step", step
    except TritError as error:
        yield "failed", type(error).__name__, str(error)
        return
    yield "done", peak_memory_bytes()
