"""What a manifest's `encoder` says of how the digits were chosen, in words.

The object is open: another writer may say anything there. Fields are read as `Encodings.encoder` of
the quantizer describes them, and what is missing or of another kind is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lines_of_encoder(encoder: Mapping[str, Any]) -> list[str]:
    """Sentences for people, each a line; none where the digits were chosen data-free."""
    lines = (
        _ternary(encoder),
        _calibrated(encoder),
        _nested(encoder),
        _data_free(encoder),
        _trained(encoder),
    )
    return [line for line in lines if line]


def _ternary(encoder: Mapping[str, Any]) -> str:
    found = encoder.get("ternary")
    if not isinstance(found, Mapping):
        return ""
    of, number, exact = (found.get(name) for name in ("of", "matrices", "exact"))
    if not (isinstance(of, int) and isinstance(number, int) and isinstance(exact, int)):
        return ""
    line = f"{number:,} of {_matrices(of)} were ternary before"
    if exact == number:
        return f"{line} and are stored without loss"
    lowest = found.get("lowest_sqnr_db")
    loss = f", SQNR {lowest} dB at least" if isinstance(lowest, int | float) else ""
    return (
        f"{line}: {exact:,} are stored without loss; {number - exact:,} keep their trits, and have "
        f"more scales than a codebook holds{loss}"
    )


def _calibrated(encoder: Mapping[str, Any]) -> str:
    matrices = encoder.get("calibrated")
    if not isinstance(matrices, int):
        return ""
    tokens = encoder.get("tokens")
    how_much = f"{tokens:,} tokens" if isinstance(tokens, int) else "a text"
    context = encoder.get("context")
    windows = f" in windows of {context:,}" if isinstance(context, int) else ""
    line = f"{_matrices(matrices)} calibrated on {how_much}{windows}"
    text = encoder.get("text")
    if isinstance(text, Mapping) and isinstance(text.get("name"), str):
        line += f" of {_plain(text['name'])}"
        if isinstance(text.get("sha256"), str):
            line += f" (SHA-256 {_plain(text['sha256'])[:12]}...)"
    return line


def _nested(encoder: Mapping[str, Any]) -> str:
    depths = encoder.get("nested")
    if not isinstance(depths, list) or not all(isinstance(depth, int) for depth in depths[:9]):
        return ""
    return f"to be read at {' or '.join(map(str, depths[:9]))} planes"


def _data_free(encoder: Mapping[str, Any]) -> str:
    reasons = encoder.get("data_free")
    if not isinstance(reasons, Mapping) or not reasons:
        return ""
    counted = [
        f"{_matrices(number)} ({_plain(reason)})"
        for reason, number in reasons.items()
        if isinstance(number, int)
    ]
    return f"data-free: {', '.join(counted)}" if counted else ""


def _trained(encoder: Mapping[str, Any]) -> str:
    trained = encoder.get("trained")
    if not isinstance(trained, Mapping) or not isinstance(trained.get("steps"), int):
        return ""
    line = _one_training(trained)
    blocks = trained.get("blocks")
    if isinstance(blocks, Mapping) and isinstance(blocks.get("steps"), int):
        line = f"{_one_training(blocks)}; then {line}"
    return line


def _one_training(trained: Mapping[str, Any]) -> str:
    """One of the trainings that `--qat` and `--tune` do, without what came before it."""
    line = f"trained for {trained['steps']:,} steps"
    if isinstance(trained.get("tokens_a_step"), int):
        line += f" of {trained['tokens_a_step']:,} tokens"
    if isinstance(trained.get("objective"), str):
        line += f" on {_plain(trained['objective'])}"
    if trained.get("kept_step") == 0:
        line += ", which brought nothing: the digits before it were kept"
    return line


def _matrices(number: int) -> str:
    return "1 matrix" if number == 1 else f"{number:,} matrices"


def _plain(text: object) -> str:
    """Of one line, and nothing that a table of Markdown would take for its own."""
    return "".join(c if c.isprintable() and c not in "|`<>" else " " for c in str(text))[:200]
