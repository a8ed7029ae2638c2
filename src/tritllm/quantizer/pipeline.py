"""Reading ahead of a computation and working behind it, each in one thread."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")


class ReadAhead(Generic[Item]):
    """Iterate over items that a thread produces in advance, holding at most `limit` bytes.

    `produce(reserve)` returns the items; before it takes memory for `n` bytes it calls
    `reserve(n)`, which waits until there is room, and the consumer calls `release(n)` when it has
    done with them. `limit` must be enough for one item. An exception of the producer is raised in
    the consumer, after the items that came before it. Use as a context manager: leaving it stops
    the thread.
    """

    def __init__(
        self, produce: Callable[[Callable[[int], None]], Iterable[Item]], limit: int
    ) -> None:
        self._produce, self._limit = produce, limit
        self._held = 0
        self._stopped = False
        self._changed = threading.Condition()
        self._queue: queue.SimpleQueue[Callable[[], Item]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def release(self, nbytes: int) -> None:
        """Make room again."""
        with self._changed:
            self._held -= nbytes
            self._changed.notify()

    def _reserve(self, nbytes: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._held + nbytes <= self._limit)
            if self._stopped:
                raise _StoppedError
            self._held += nbytes

    def _run(self) -> None:
        try:
            for item in self._produce(self._reserve):
                self._queue.put(lambda item=item: item)  # type: ignore[misc]
        except BaseException as error:
            self._queue.put(lambda error=error: _raise(error))  # type: ignore[misc]
        else:
            self._queue.put(lambda: _raise(_ExhaustedError()))

    def __iter__(self) -> Iterator[Item]:
        while True:
            try:
                yield self._queue.get()()
            except _ExhaustedError:
                return

    def __enter__(self) -> ReadAhead[Item]:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()


class _StoppedError(Exception):
    """Nobody wants more items."""


class _ExhaustedError(Exception):
    """The producer has come to its end."""


def _raise(error: BaseException) -> Any:
    raise error


class InOrder:
    """Run jobs in a thread, one after the other.

    After a failed job none runs; the next `submit` or `wait` raises its error. Leaving the context
    waits for the last job; an error is raised unless another is on its way.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1)
        self._waiting: deque[Future[Any]] = deque()
        self._failed = False

    def submit(
        self, job: Callable[..., Any], *arguments: Any, at_most: int | None = None
    ) -> Future[Any]:
        """Run job(*arguments) after the jobs before; first wait until fewer than `at_most` are
        under way. The future has what it returns.
        """
        while self._waiting and (
            self._waiting[0].done() or (at_most is not None and len(self._waiting) >= at_most)
        ):
            self._waiting.popleft().result()
        future = self._executor.submit(self._run, job, *arguments)
        self._waiting.append(future)
        return future

    def _run(self, job: Callable[..., Any], *arguments: Any) -> Any:
        if self._failed:
            return None
        try:
            return job(*arguments)
        except BaseException:
            self._failed = True
            raise

    def wait(self) -> None:
        """Return when nothing is under way."""
        while self._waiting:
            self._waiting.popleft().result()

    def __enter__(self) -> InOrder:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._executor.shutdown(wait=True)
