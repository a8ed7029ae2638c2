"""A plan, and workers that do its shards by attempts in this process."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

from tritllm.quantizer.attempts import Attempt, quantize_shard
from tritllm.quantizer.configs import parse_config
from tritllm.quantizer.fingerprint import Settings
from tritllm.quantizer.journal import Journal, is_finished
from tritllm.quantizer.plan import Plan, make_plan
from tritllm.quantizer.shard_pass import Progress
from tritllm.quantizer.source import open_source
from tritllm.storage.model_files import open_files


def plan_of(source: Path, *configs: str) -> Plan:
    """As `quantize` makes it by default."""
    parsed = tuple(map(parse_config, configs))
    return make_plan(
        open_source(open_files(str(source))), Settings(parsed, ("packed", "model"), "v3", "float16")
    )


def finish_attempt(plan: Plan, attempt: Attempt) -> None:
    """What a worker does, to its end."""
    for _ in quantize_shard(plan, attempt.shard, attempt.folder, 1):
        pass


class WorkersHere:
    """`ShardWorkers`, one shard after the other, the last first, by a plan that was pickled."""

    def __enter__(self) -> WorkersHere:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def process(
        self,
        plan: Plan,
        out: Path,
        journal: Journal,
        on_progress: Callable[[Progress], None] | None,
    ) -> int | None:
        for shard in reversed(plan.source.shards):
            if is_finished(journal.of_shard(shard.name)):
                continue
            attempt = Attempt.begin(plan, out, shard.name)
            sent = pickle.loads(pickle.dumps(plan))
            for step in quantize_shard(sent, shard.name, attempt.folder, 1):
                if on_progress:
                    on_progress(step)
            attempt.adopt(plan, journal)
        return 1 << 60
