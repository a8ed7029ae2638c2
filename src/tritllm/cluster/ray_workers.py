"""`ShardWorkers` on the machines of a Ray cluster.

The driver, which is the process that was started by hand, plans, makes the folder of each attempt,
and moves finished shards to their place (`quantizer.attempts`). The workers need to see the source
and the output folder at the driver's paths.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from tritllm.cluster import entry
from tritllm.cluster.connection import connect
from tritllm.cluster.fan_out import FanOut
from tritllm.cluster.nodes import processors_a_shard
from tritllm.extras import require
from tritllm.quantizer.attempts import Attempt
from tritllm.quantizer.journal import Journal, is_finished
from tritllm.quantizer.plan import Plan
from tritllm.quantizer.shard_pass import Progress

_WORKER_BYTES = 150 << 20  # of Ray in each worker


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
        nodes = [node for node in ray.nodes() if node["Alive"]]
        cpus = processors_a_shard(nodes, len(todo), memory, self._threads)
        machines = sum(node["Resources"].get("CPU", 0) >= 1 for node in nodes)
        self._notice(
            f"{len(todo)} shard(s) on a Ray cluster of {machines} machine(s), each with {cpus} "
            f"processor(s) and {memory / 1e9:.2f} GB of memory"
        )
        ray.cloudpickle.register_pickle_by_value(entry)
        task = ray.remote(entry.shard_task)
        payload = ray.put(pickle.dumps(plan))

        def start(attempt: Attempt, losses: int) -> Any:
            return task.options(
                num_cpus=cpus,
                # Those that ask for the same wait in one line, which may wait for a lost machine.
                memory=memory + losses,
                max_retries=0,  # each try has a folder of its own, which is made here
                num_returns="streaming",
                scheduling_strategy="SPREAD",
            ).remote(entry.versions(), payload, attempt.shard, str(attempt.folder), cpus)

        longest_first = sorted(todo, key=lambda shard: -shard.size)
        fan_out = FanOut(plan, out.absolute(), journal, start, on_progress, self._notice)
        try:
            return fan_out.process([shard.name for shard in longest_first])
        except BaseException:
            for stream in fan_out.running:
                ray.cancel(stream, force=True)
            raise
