"""The shards that workers have in hand: what they report, in one place, and what is done about it.

A shard whose worker died is handed out again, a few times; a fault of its own ends the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tritllm import errors
from tritllm.errors import TritError, first_line
from tritllm.quantizer.attempts import Attempt
from tritllm.quantizer.journal import Journal
from tritllm.quantizer.plan import Plan
from tritllm.quantizer.shard_pass import Progress

TRIES = 4  # of a shard whose workers die, before the run stops
_LOOK_SECONDS = 2.0  # between two looks at the cluster as a whole
_PATIENCE_SECONDS = 20.0  # until the user is told that nothing has begun


@dataclass
class _Running:
    """A shard that was handed out. machine, node: where it has begun, its name and Ray's for it."""

    attempt: Attempt
    machine: str = ""
    node: str = ""


class FanOut:
    """Hands shards out and takes them back; for the holder of the `RunLock`.

    start: begins `entry.shard_task` on some worker and returns the stream of its messages; its
        second argument counts how often machines were lost.
    running: by stream, what is handed out.
    """

    def __init__(
        self,
        plan: Plan,
        out: Path,
        journal: Journal,
        start: Callable[[Attempt, int], Any],
        on_progress: Callable[[Progress], None] | None,
        notice: Callable[[str], None],
    ) -> None:
        self.running: dict[Any, _Running] = {}
        self._plan = plan
        self._out = out
        self._journal = journal
        self._start = start
        self._on_progress = on_progress
        self._notice = notice
        self._tries: dict[str, int] = {}
        self._machines: set[str] = set()  # Ray's names of those that were alive at the last look
        self._losses = 0
        self._said: set[str] = set()  # what machines have noted
        self._done: dict[str, int] = {}  # by shard handed out, bytes of the source
        self._total = sum(tensor.entry.nbytes for tensor in plan.all_tensors)
        self._peak: int | None = None
        self._waits_since: float | None = time.monotonic()  # None once something has begun
        self._looked_at = time.monotonic()

    def process(self, shards: Sequence[str]) -> int | None:
        """Have these shards done; as `ShardWorkers.process`, under Ray."""
        for shard in shards:
            self.hand_out(shard)
        while self.running:
            self._step()
        return self._peak

    def hand_out(self, shard: str) -> None:
        """Have a shard done by some worker, from its beginning."""
        self._tries[shard] = self._tries.get(shard, 0) + 1
        self._done[shard] = 0
        attempt = Attempt.begin(self._plan, self._out, shard)
        self.running[self._start(attempt, self._losses)] = _Running(attempt)

    def _step(self) -> None:
        """Wait for a message of any worker, a second at most, and act upon it."""
        import ray

        if time.monotonic() - self._looked_at > _LOOK_SECONDS:
            self._looked_at = time.monotonic()
            self._say_if_nothing_begins()
            self._look_for_dead_machines()
        ready, _ = ray.wait(list(self.running), num_returns=1, timeout=1.0, fetch_local=False)
        for stream in ready:
            try:
                message = ray.get(next(stream))
            except ray.exceptions.RayTaskError:
                raise  # a fault of tritllm's own, with its traceback
            except ray.exceptions.RayError as error:
                self.worker_died(stream, first_line(error))
            else:
                self.receive(stream, message)

    def receive(self, stream: Any, message: tuple[Any, ...]) -> None:
        """Act upon a message (see `entry`). Raises the TritError that it tells of."""
        kind, *details = message
        running = self.running[stream]
        if kind == "begun":
            running.machine, running.node = details
            self._waits_since = None
        elif kind == "step":
            step: Progress = details[0]
            self._done[running.attempt.shard] = step.done_bytes
            if self._on_progress:
                self._on_progress(replace(step, done_bytes=self._done_bytes()))
        elif kind == "notice":
            if (line := f"{details[0]} (on the machine {running.machine})") not in self._said:
                self._said.add(line)
                self._notice(line)
        elif kind == "failed":
            name, line = details
            raise getattr(errors, name)(f"{line} (on the machine {running.machine})")
        else:
            del self.running[stream]
            peaks = [peak for peak in (self._peak, details[0]) if peak is not None]
            self._peak = max(peaks, default=None)
            running.attempt.adopt(self._plan, self._journal)

    def _done_bytes(self) -> int:
        """Of the source, in this run and before it."""
        here = sum(
            tensor.entry.nbytes for shard in self._done for tensor in self._plan.tensors[shard]
        )
        return self._total - here + sum(self._done.values())

    def worker_died(self, stream: Any, reason: str) -> None:
        """Hand its shard out again. Raises TritError where that has happened too often."""
        running = self.running.pop(stream)
        shard, tries = running.attempt.shard, self._tries[running.attempt.shard]
        where = f"on the machine {running.machine}" if running.machine else "before it began"
        running.attempt.discard()
        if tries == TRIES:
            raise TritError(
                f"{shard}: its worker died {tries} times, at last {where}: {reason}; finished "
                "shards are kept: see to the machines, and run the same command again"
            )
        self._notice(f"{shard}: its worker died {where} ({reason}); it is done anew")
        self.hand_out(shard)

    def _say_if_nothing_begins(self) -> None:
        if self._waits_since and time.monotonic() - self._waits_since > _PATIENCE_SECONDS:
            self._waits_since = None
            self._notice("no shard has begun: processors or memory of the cluster are taken")

    def _look_for_dead_machines(self) -> None:
        import ray

        self.see({node["NodeID"] for node in ray.nodes() if node["Alive"]}, ray.cancel)

    def see(self, alive: set[str], cancel: Callable[[Any], None]) -> None:
        """Hand out again what was begun on machines that Ray has lost, and what has not begun.

        Ray keeps waiting, minutes long, where a connection is not closed, as that to a machine
        without power: for what runs there, and for what it was about to send there.
        """
        lost, self._machines = self._machines - alive, alive
        if not lost:
            return
        self._losses += 1
        for stream, running in list(self.running.items()):
            if not running.node:
                cancel(stream)
                del self.running[stream]
                running.attempt.discard()
                self._tries[running.attempt.shard] -= 1
                self.hand_out(running.attempt.shard)
            elif running.node not in alive:
                self.worker_died(stream, "Ray has lost the machine")
