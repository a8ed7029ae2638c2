"""tritllm info: what a model page shows."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from tritllm.cli.console import console, count, size
from tritllm.model_card.encoder import lines_of_encoder
from tritllm.publish.info import ModelInfo, info


def command(
    model: Annotated[str, typer.Argument(help="A packed folder, a model folder or a Hub id.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
) -> None:
    """Describe a model: parameters, context, licence, depth, bits a weight, sizes, memory."""
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for field, value in _rows(info(model, revision=revision)):
        table.add_row(field, Text(value))
    console.print(table)


def _rows(facts: ModelInfo) -> list[tuple[str, str]]:
    licence = facts.licence.id + (f", {facts.licence.link}" if facts.licence.link else "")
    rows = [
        ("model", facts.name),
        ("architecture", facts.architecture),
        ("parameters", count(facts.parameters)),
        ("context length", f"{facts.context_length:,}" if facts.context_length else "unknown"),
        ("licence", licence),
        ("base model", facts.base_model or "none stated"),
    ]
    if facts.depths:
        total = sum(facts.depths.values())
        depths = ", ".join(
            f"d={depth} ({3**depth} levels)"
            + ("" if len(facts.depths) == 1 else f" for {100 * weights / total:.0f} %")
            for depth, weights in sorted(facts.depths.items())
        )
        rows += [
            ("depth", depths),
            ("codec", f"tritllm {facts.codec}"),
            *(("digits chosen", line) for line in lines_of_encoder(facts.encoder)),
            (
                "bits per weight",
                f"{facts.information_bits:.2f} information, {facts.file_bits:.3f} in the file, "
                f"{8 * facts.weight_bytes / facts.parameters:.2f} with all that is kept",
            ),
            (
                "SQNR",
                "exact" if facts.sqnr_mean_db is None else f"{facts.sqnr_mean_db:.2f} dB mean",
            ),
        ]
    else:
        dtypes = ", ".join(f"{name} {count(n)}" for name, n in facts.dtypes.items())
        rows += [("depth", "not quantized by tritllm"), ("stored as", dtypes)]
        rows += [("bits per weight", f"{facts.file_bits:.2f}")]
    rows += [("file size", size(facts.weight_bytes))]
    cache = facts.cache_bytes_per_token
    tail = f", plus {size(1000 * cache)} for 1,000 tokens of context" if cache else ""
    packed = f"{size(facts.weight_bytes)} packed, " if facts.depths else ""
    rows += [("memory to run", f"{packed}{size(facts.float_bytes)} in 16 bits{tail}")]
    return rows
