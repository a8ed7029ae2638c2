"""What a run depends on: two runs with equal fingerprints write equal bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tritllm.quantizer.configs import Config
from tritllm.quantizer.source import Source, SourceShard
from tritllm.storage.model_files import ModelFiles
from tritllm.version import __version__


@dataclass(frozen=True)
class Settings:
    """What a user asks of a run, besides where it reads and writes. See `quantize`.

    calibration: what a calibrator says its results depend on; None for a data-free run.
    """

    configs: tuple[Config, ...]
    kinds: tuple[str, ...]
    codec: str
    dtype: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    calibration: Mapping[str, Any] | None = None


def fingerprint_of(source: Source, settings: Settings) -> dict[str, Any]:
    """The settings and the source of a run, in JSON's types.

    Side files are not in it: they are copied anew whenever a run ends, so a changed one cannot mix
    with what was written before. `depth_maps` and `calibration` are there only where they apply.
    """
    configs = settings.configs
    overrides = [[f"{glob}={depth}" for glob, depth in config.overrides] for config in configs]
    alike = all(each == overrides[0] for each in overrides)
    by_config = dict(zip((config.name for config in configs), overrides, strict=True))
    maps = {config.name: _sha256_of(config.depths) for config in configs if config.depths}
    calibration = settings.calibration
    return {
        "tool_version": __version__,
        "codec": settings.codec,
        "configs": [config.name for config in configs],
        "depth_overrides": overrides[0] if alike else by_config,
        "write": list(settings.kinds),
        "dtype": settings.dtype,
        "include": list(settings.include),
        "exclude": list(settings.exclude),
        "source": source.files.name,
        "revision": source.files.revision,
        "source_config": hashlib.sha256(repr(sorted(source.config.items())).encode()).hexdigest(),
        "shards": {
            shard.name: fingerprint_of_shard(source.files, shard) for shard in source.shards
        },
        **({"depth_maps": maps} if maps else {}),
        **({"calibration": dict(calibration)} if calibration is not None else {}),
    }


def fingerprint_of_shard(files: ModelFiles, shard: SourceShard) -> dict[str, Any]:
    """What tells a source shard from another one of its name, its weights unread."""
    return {
        "size": shard.size,
        "header_sha256": hashlib.sha256(shard.header.raw).hexdigest(),
        "modified": files.stamp(shard.name),
    }


def _sha256_of(depths: Mapping[str, int]) -> str:
    return hashlib.sha256(json.dumps(sorted(depths.items())).encode()).hexdigest()


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> str:
    """'key: old -> new' for what differs between two fingerprints; empty if nothing does."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := differences(old, new, f"{prefix}{key}."):
                found.append(inner)
        elif old != new:
            found.append(f"{prefix}{key}: {_shown(old)} -> {_shown(new)}")
    return "; ".join(found)


def _shown(value: Any) -> Any:
    """Of settings that only one of two runs has, nothing more than that."""
    return "given" if isinstance(value, dict) else "none" if value is None else value
