"""Threads that run the library on parts of one matrix; ctypes releases the interpreter's lock."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

from tritllm.native.library import library

PARTS_PER_THREAD = 4  # so that a thread which finishes early finds more work


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="tritllm-native")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def run(tasks: Iterable[Callable[[], None]], threads: int) -> None:
    """Runs every task, on up to `threads` threads, this one among them.

    Where the system gives no more threads, fewer do the work. What a task raises is raised when
    those that had begun have ended; the others are then dropped.
    """
    waiting = list(tasks)[::-1]

    def work() -> None:
        while True:
            try:
                task = waiting.pop()
            except IndexError:  # another thread took the last
                return
            try:
                task()
            except BaseException:
                waiting.clear()
                raise

    helpers: list[Future[None]] = []
    for _ in range(min(threads, len(waiting)) - 1):
        try:
            helpers.append(_pool(threads - 1).submit(work))
        except RuntimeError:  # no more threads
            break
    try:
        work()
    finally:
        errors = [helper.exception() for helper in helpers if not helper.cancel()]
    for error in errors:
        if error is not None:
            raise error


def parts(n: int, multiple: int, threads: int) -> Iterator[tuple[int, int]]:
    """Ranges that cover 0..n, each beginning at a multiple of `multiple`."""
    count = threads * PARTS_PER_THREAD if threads > 1 else 1
    size = max(1, -(-n // (count * multiple))) * multiple
    for begin in range(0, n, size):
        yield begin, min(begin + size, n)


@cache
def use_openmp() -> bool:
    """Let products run on the threads of an OpenMP runtime that is loaded; whether there is one.

    Two pools would compete for the cores. For callers in a process that has torch.
    """
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return False
    library().tritllm_linear_use_openmp(ctypes.cast(parallel, ctypes.c_void_p))
    return True
