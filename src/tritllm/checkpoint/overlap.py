"""Reading ahead of a computation and writing behind it, each in one thread, by a bounded amount."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class ReadAhead(Generic[Item]):
    """Iterate over `items` while a thread produces up to `limit` of them in advance.

    An exception of the producer is raised in the consumer, after the items that came before it.
    Use as a context manager: leaving it stops the thread.
    """

    def __init__(self, items: Iterable[Item], limit: int) -> None:
        self._items = items
        self._queue: queue.Queue[Callable[[], Item]] = queue.Queue(limit)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce, daemon=True)
        self._thread.start()

    def _produce(self) -> None:
        try:
            for item in self._items:
                if not self._put(lambda item=item: item):  # type: ignore[misc]
                    return
        except BaseException as error:
            self._put(lambda error=error: _raise(error))  # type: ignore[misc]
        else:
            self._put(lambda: _raise(_ExhaustedError()))

    def _put(self, outcome: Callable[[], Item]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(outcome, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[Item]:
        while True:
            try:
                yield self._queue.get()()
            except _ExhaustedError:
                return

    def __enter__(self) -> ReadAhead[Item]:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class _ExhaustedError(Exception):
    """The producer has come to its end."""


def _raise(error: BaseException) -> Any:
    raise error


class WriteBehind:
    """Run jobs in order in a thread, at most one behind the caller.

    `submit` waits for the job before, and raises what that raised: after a failed job none follows.
    Leaving the context waits for the last job; its error is raised unless another is on its way.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tritllm-writer")
        self._last: Future[None] | None = None

    def submit(self, job: Callable[..., None], *arguments: Any) -> None:
        """Start job(*arguments) once the job before is done."""
        self.wait()
        self._last = self._executor.submit(job, *arguments)

    def wait(self) -> None:
        """Return when nothing is under way."""
        if self._last:
            last, self._last = self._last, None
            last.result()

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._executor.shutdown(wait=True)
