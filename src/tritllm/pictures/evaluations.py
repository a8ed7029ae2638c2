"""What `tritllm eval --json` left, read for pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritllm.errors import FormatError
from tritllm.format.json_object import parse_object


@dataclass(frozen=True)
class EvaluatedPoint:
    """One model of an evaluation. made: "data-free", "calibrated", "trained" or "other". bits: a
    weight of the linear layers, or of all parameters. kl: mean KL in nats a token.
    """

    label: str
    path: str
    made: str
    bits: float
    file_bytes: int
    kl: float
    perplexity: float
    same_top: float


@dataclass(frozen=True)
class EvaluationFile:
    """text: what was measured on, in words. reference_perplexity: None where nobody measured."""

    where: str
    text: str
    reference_perplexity: float | None
    points: Sequence[EvaluatedPoint]


def read_evaluation(data: bytes, where: str) -> EvaluationFile:
    """The models of an evaluation that were measured on a text.

    where: the file, for messages.

    Raises FormatError for anything that `tritllm eval --json` did not write, and where no model was
    measured on a text.
    """
    content = parse_object(data, where)
    try:
        points = [_point(row) for row in content["models"] if row["statistics"] is not None]
        protocol, reference = content["protocol"], content["reference_perplexity"]
        if points:
            text = f"{Path(protocol['text']).name}, {protocol['predictions']:,} predictions"
    except (KeyError, TypeError, ValueError):
        raise FormatError(f"{where}: not what tritllm eval --json writes") from None
    if not points:
        raise FormatError(f"{where}: no model in it was measured on a text")
    known = None if reference is None else float(reference["value"])
    return EvaluationFile(where, text, known, points)


def _point(row: dict[str, Any]) -> EvaluatedPoint:
    statistics, size = row["statistics"], row["size"]
    bits = size["weight_bits"] or size["parameter_bits"]
    return EvaluatedPoint(
        str(row["name"]),
        str(row["path"]),
        str(row["made"]),
        math.nan if bits is None else float(bits),
        int(size["file_bytes"]),
        float(statistics["kl"]["mean"]["value"]),
        float(statistics["perplexity"]["value"]),
        float(statistics["same_top"]["value"]),
    )
