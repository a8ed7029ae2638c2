"""What a cluster's machines offer, and how much of it a shard is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tritllm.errors import TritError


def processors_a_shard(
    nodes: Sequence[Mapping[str, Any]], shards: int, memory: int, threads: int | None
) -> int:
    """How many of a machine's processors a shard is given: so many that all shards are done at
    once, if there are enough; the user's number, if there is one.

    nodes: those of `ray.nodes()` that are alive. Those without a processor (a head that only
        manages) do nothing.
    memory: bytes that a shard takes.

    Raises TritError where no machine has what a shard takes: Ray would wait for one for ever.
    """
    offers = [node["Resources"] for node in nodes]
    working = [offer for offer in offers if offer.get("CPU", 0) >= 1]
    if not working:
        raise TritError(
            "the Ray cluster has no machine with a processor to work with; "
            "join some with `ray start --address=HOST:6379`"
        )
    fitting = [offer for offer in working if offer.get("memory", 0) >= memory]
    if not fitting:
        most = max(offer.get("memory", 0) for offer in working)
        raise TritError(
            f"a shard takes about {memory / 1e9:.1f} GB of memory and no machine of the Ray "
            f"cluster offers more than {most / 1e9:.1f} GB; run fewer --configs at once"
        )
    counts = [int(offer["CPU"]) for offer in fitting]
    if threads is None:
        return max(1, min(min(counts), sum(counts) // shards))
    if threads > max(counts):
        raise TritError(
            f"--threads {threads}: no machine of the Ray cluster with enough memory has more than "
            f"{max(counts)} processors"
        )
    return threads
