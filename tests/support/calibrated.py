"""Calibrating a tiny model without the quantizer around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tritllm.quantizer.configs import parse_config
from tritllm.quantizer.fingerprint import Settings
from tritllm.quantizer.plan import Plan, make_plan
from tritllm.quantizer.source import open_source
from tritllm.storage.model_files import open_files


def plan_of(
    source: Path,
    configs: Sequence[str] = ("uniform-d2",),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kinds: Sequence[str] = ("packed",),
) -> Plan:
    """What `quantize` would do with a folder."""
    parsed = tuple(parse_config(name) for name in configs)
    settings = Settings(parsed, tuple(kinds), "v3", "float16", tuple(include), tuple(exclude))
    return make_plan(open_source(open_files(str(source))), settings)


def calibrate(calibrator: Any, plan: Plan, folder: Path) -> Any:
    """Run in a folder of its own, with one thread."""
    folder.mkdir(exist_ok=True)
    return calibrator.run(plan, folder, 1, None)


def bytes_of(encodings: Any, plan: Plan) -> dict[tuple[str, str], tuple[bytes, ...] | None]:
    """Every array of every matrix by config and module; None where it is data-free."""
    found = {}
    for config in plan.configs:
        for matrix in plan.quantized:
            digits = encodings.encoded(matrix, config)
            assert digits is None or digits.depth == config.depth_of(matrix.module)
            found[config.name, matrix.module] = digits and (
                digits.weight.tobytes(), digits.scale.tobytes(), digits.codebook.tobytes()
            )  # fmt: skip
    return found
