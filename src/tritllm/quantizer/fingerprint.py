"""What a run depends on: two runs with equal fingerprints write equal bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from tritllm.quantizer.configs import Config
from tritllm.quantizer.source import Source
from tritllm.version import __version__


def fingerprint_of(
    source: Source,
    configs: Sequence[Config],
    kinds: Sequence[str],
    codec: str,
    dtype: str,
    include: Sequence[str],
    exclude: Sequence[str],
) -> dict[str, Any]:
    """The settings and the source of a run, in JSON's types.

    Side files are not in it: they are copied anew whenever a run ends, so a changed one cannot mix
    with what was written before.
    """
    overrides = [[f"{glob}={depth}" for glob, depth in config.overrides] for config in configs]
    alike = all(each == overrides[0] for each in overrides)
    by_config = dict(zip((config.name for config in configs), overrides, strict=True))
    return {
        "tool_version": __version__,
        "codec": codec,
        "configs": [config.name for config in configs],
        "depth_overrides": overrides[0] if alike else by_config,
        "write": list(kinds),
        "dtype": dtype,
        "include": list(include),
        "exclude": list(exclude),
        "source": source.files.name,
        "revision": source.files.revision,
        "source_config": hashlib.sha256(repr(sorted(source.config.items())).encode()).hexdigest(),
        "shards": {
            shard.name: {
                "size": shard.size,
                "header_sha256": hashlib.sha256(shard.header.raw).hexdigest(),
                "modified": source.files.stamp(shard.name),
            }
            for shard in source.shards
        },
    }


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> str:
    """'key: old -> new' for what differs between two fingerprints; empty if nothing does."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := differences(old, new, f"{prefix}{key}."):
                found.append(inner)
        elif old != new:
            found.append(f"{prefix}{key}: {old} -> {new}")
    return "; ".join(found)
