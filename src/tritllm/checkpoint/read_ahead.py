"""Running a generator ahead of its consumer, in a thread, a bounded number of items."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class ReadAhead(Generic[Item]):
    """Iterate over `items` while a thread produces up to `limit` of them in advance.

    An exception of the producer is raised in the consumer, after the items that came before it.
    Use as a context manager: leaving it stops the thread.
    """

    def __init__(self, items: Iterable[Item], limit: int) -> None:
        self._queue: queue.Queue[tuple[Item | None, BaseException | None, bool]] = queue.Queue(
            limit
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce, args=(items,), daemon=True)
        self._thread.start()

    def _produce(self, items: Iterable[Item]) -> None:
        try:
            for item in items:
                if not self._put((item, None, False)):
                    return
        except BaseException as error:
            self._put((None, error, True))
        else:
            self._put((None, None, True))

    def _put(self, entry: tuple[Item | None, BaseException | None, bool]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[Item]:
        while True:
            item, error, last = self._queue.get()
            if error is not None:
                raise error
            if last:
                return
            yield item  # type: ignore[misc]

    def __enter__(self) -> ReadAhead[Item]:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
