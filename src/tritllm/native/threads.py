"""Threads that run the library on parts of one matrix; ctypes releases the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

PARTS_PER_THREAD = 4  # so that a thread which finishes early finds more work


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="tritllm-native")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def run(tasks: Iterable[Callable[[], None]], threads: int) -> None:
    """Runs every task, on up to `threads` threads; raises what the first failing one raised."""
    tasks = list(tasks)
    if threads <= 1 or len(tasks) <= 1:
        for task in tasks:
            task()
    else:
        for _ in _pool(threads).map(lambda task: task(), tasks):
            pass


def parts(n: int, multiple: int, threads: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover 0..n, each beginning at a multiple of `multiple`."""
    count = threads * PARTS_PER_THREAD if threads > 1 else 1
    size = max(1, -(-n // (count * multiple))) * multiple
    for begin in range(0, n, size):
        yield begin, min(begin + size, n)
