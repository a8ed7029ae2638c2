"""The shards of a run, handed out to a Ray cluster; what they report, in one place.

The driver, which is the process that was started by hand, plans, makes the folder of each attempt,
and moves finished shards to their place (`quantizer.attempts`). The workers need to see the source
and the output folder at the same paths. A shard whose worker died is given to another.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from tritllm import errors
from tritllm.cluster import entry
from tritllm.cluster.connection import connect
from tritllm.cluster.nodes import processors_a_shard
from tritllm.errors import TritError, first_line
from tritllm.extras import require
from tritllm.quantizer.attempts import Attempt
from tritllm.quantizer.journal import Journal, is_finished
from tritllm.quantizer.plan import Plan
from tritllm.quantizer.shard_pass import Progress

TRIES = 4  # of a shard whose workers die, before the run stops
_WORKER_BYTES = 150 << 20  # of Ray in each worker
_PATIENCE_SECONDS = 20.0  # until the user is told that nothing has begun


@dataclass
class _Running:
    """A shard that was handed out. machine: where it has begun."""

    attempt: Attempt
    machine: str = ""


class RayWorkers:
    """`ShardWorkers` on the machines of a Ray cluster.

    address: "auto" or HOST:PORT. threads: processors a shard; default depends on the cluster.
    on_notice: called with a line about the cluster: what it offers, a worker that died.
    """

    def __init__(
        self,
        address: str,
        threads: int | None = None,
        on_notice: Callable[[str], None] | None = None,
    ) -> None:
        require("--ray", "ray", "ray")
        self._address = address
        self._threads = threads
        self._notice = on_notice or (lambda line: None)
        self._connected = False

    def __enter__(self) -> RayWorkers:
        self._connected = connect(self._address)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._connected:
            import ray

            ray.shutdown()

    def process(
        self,
        plan: Plan,
        out: Path,
        journal: Journal,
        on_progress: Callable[[Progress], None] | None,
    ) -> int | None:
        """As `ShardWorkers.process`."""
        import ray

        todo = [
            shard for shard in plan.source.shards if not is_finished(journal.of_shard(shard.name))
        ]
        if not todo:
            return None
        memory = plan.memory.peak + _WORKER_BYTES
        cpus = processors_a_shard(ray.nodes(), len(todo), memory, self._threads)
        machines = sum(
            node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes()
        )
        self._notice(
            f"{len(todo)} shard(s) on a Ray cluster of {machines} machine(s), each with {cpus} "
            f"processor(s) and {memory / 1e9:.2f} GB of memory"
        )
        ray.cloudpickle.register_pickle_by_value(entry)
        task = ray.remote(entry.shard_task).options(
            num_cpus=cpus,
            memory=memory,
            max_retries=0,  # each try has a folder of its own, which is made here
            num_returns="streaming",
            scheduling_strategy="SPREAD",
        )
        payload = ray.put(pickle.dumps(plan))

        def hand_out(shard: str) -> tuple[Any, _Running]:
            attempt = Attempt.begin(plan, out.absolute(), shard)
            arguments = (entry.versions(), payload, shard, str(attempt.folder), cpus)
            return task.remote(*arguments), _Running(attempt)

        run = _Pass(plan, journal, hand_out, on_progress, self._notice)
        run.done = {shard.name: 0 for shard in todo}
        for shard in sorted(todo, key=lambda shard: -shard.size):  # the longest first
            run.hand_out(shard.name)
        try:
            while run.running:
                run.step()
        except BaseException:
            for stream in run.running:
                ray.cancel(stream, force=True)
            raise
        return run.peak


class _Pass:
    """One call of `process`: what is handed out, and what has come back.

    done: by shard not finished before, the bytes of the source that are done.
    """

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        hand_out: Callable[[str], tuple[Any, _Running]],
        on_progress: Callable[[Progress], None] | None,
        notice: Callable[[str], None],
    ) -> None:
        self.plan = plan
        self.journal = journal
        self.running: dict[Any, _Running] = {}  # by the stream of messages
        self.done: dict[str, int] = {}
        self.peak: int | None = None
        self._hand_out = hand_out
        self._on_progress = on_progress
        self._notice = notice
        self._tries: dict[str, int] = {}
        self._total = sum(tensor.entry.nbytes for tensor in plan.all_tensors)
        self._begun_at: float | None = time.monotonic()  # None once something has begun

    def hand_out(self, shard: str) -> None:
        """Have a shard done by some worker."""
        self._tries[shard] = self._tries.get(shard, 0) + 1
        stream, running = self._hand_out(shard)
        self.running[stream] = running

    def step(self) -> None:
        """Wait for a message of any worker, a second at most, and act upon it."""
        import ray

        ready, _ = ray.wait(list(self.running), num_returns=1, timeout=1.0, fetch_local=False)
        if not ready:
            self._say_if_nothing_begins()
        for stream in ready:
            running = self.running[stream]
            try:
                message = ray.get(next(stream))
            except StopIteration:
                del self.running[stream]
                raise TritError(
                    f"{running.attempt.shard}: its worker stopped without a word"
                ) from None
            except ray.exceptions.RayTaskError:
                raise  # a fault of tritllm's own, with its traceback
            except ray.exceptions.RayError as error:
                del self.running[stream]
                self._worker_died(running, first_line(error))
            else:
                self._receive(stream, running, message)

    def _receive(self, stream: Any, running: _Running, message: tuple[Any, ...]) -> None:
        kind, *details = message
        shard = running.attempt.shard
        if kind == "begun":
            (running.machine,) = details
            self._begun_at = None
        elif kind == "step":
            step: Progress = details[0]
            self.done[shard] = step.done_bytes
            if self._on_progress:
                self._on_progress(replace(step, done_bytes=self._done_bytes()))
        elif kind == "failed":
            name, line = details
            raise getattr(errors, name)(f"{line} (on the machine {running.machine})")
        else:
            del self.running[stream]
            peaks = [peak for peak in (self.peak, details[0]) if peak is not None]
            self.peak = max(peaks, default=None)
            running.attempt.adopt(self.plan, self.journal)

    def _done_bytes(self) -> int:
        """Of the source, in this run and before it."""
        before = self._total - sum(
            tensor.entry.nbytes for shard in self.done for tensor in self.plan.tensors[shard]
        )
        return before + sum(self.done.values())

    def _worker_died(self, running: _Running, reason: str) -> None:
        shard, tries = running.attempt.shard, self._tries[running.attempt.shard]
        where = f"on the machine {running.machine}" if running.machine else "before it began"
        running.attempt.discard()
        if tries == TRIES:
            raise TritError(
                f"{shard}: its worker died {tries} times, at last {where}: {reason}; finished "
                "shards are kept: see to the machines, and run the same command again"
            )
        self._notice(f"{shard}: its worker died {where} ({reason}); it is done anew elsewhere")
        self.done[shard] = 0
        self.hand_out(shard)

    def _say_if_nothing_begins(self) -> None:
        if self._begun_at and time.monotonic() - self._begun_at > _PATIENCE_SECONDS:
            self._begun_at = None
            self._notice("no shard has begun: processors or memory of the cluster are taken")
