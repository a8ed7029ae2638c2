"""The seam between a run and other processes that do its shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol

from tritllm.quantizer.journal import Journal
from tritllm.quantizer.plan import Plan
from tritllm.quantizer.shard_pass import Progress


class ShardWorkers(Protocol):
    """Does the shards of data-free runs elsewhere, by `attempts.quantize_shard`.

    A context manager: entered before anything is written, it makes sure that there is somebody to
    do the work, or raises TritError.
    """

    def __enter__(self) -> ShardWorkers: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def process(
        self,
        plan: Plan,
        out: Path,
        journal: Journal,
        on_progress: Callable[[Progress], None] | None,
    ) -> int | None:
        """Have every shard done that the journal does not name as finished; called by the holder
        of the `RunLock`.

        Returns the largest peak of resident memory among the workers in bytes; None where none is
        known.

        Raises TritError in one line; finished shards stay.
        """
        ...
