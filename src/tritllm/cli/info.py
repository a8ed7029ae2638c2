"""tritllm info: what a model page shows, and what serving the model takes."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from tritllm.cli.console import console
from tritllm.errors import TritError
from tritllm.model_card.encoder import lines_of_encoder
from tritllm.publish.info import ModelInfo
from tritllm.quantities import count, size
from tritllm.run.info import CONTEXTS, info
from tritllm.serving.need import GPUS, Fit, ServingNeed


def command(
    model: Annotated[
        str,
        typer.Argument(help="A packed folder, a model folder, a config.json or a Hub id."),
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    serving: Annotated[
        bool,
        typer.Option(
            "--serving",
            help="Also count weights, cache and GPUs that serving takes; shown unasked for a "
            "config.json without weights.",
        ),
    ] = False,
    context: Annotated[
        str, typer.Option(help="Tokens of a sequence to count with, separated by commas.")
    ] = ",".join(map(str, CONTEXTS)),
    sequences: Annotated[
        int, typer.Option(min=1, help="Sequences of that length, served at a time.")
    ] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON, sizes in bytes.")
    ] = False,
) -> None:
    """Describe a model: parameters, licence, depth, sizes; with --serving the GPUs it takes."""
    facts = info(
        model,
        revision=revision,
        serving=serving,
        context=_contexts(context),
        sequences=sequences,
    )
    if as_json:
        print(json.dumps(asdict(facts)))
        return
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for field, value in _rows(facts):
        table.add_row(field, Text(value))
    console.print(table)
    if facts.serving:
        _print_serving(facts.serving)


def _contexts(text: str) -> list[int]:
    try:
        return [int(tokens) for tokens in text.split(",")]
    except ValueError:
        raise TritError(
            f"--context takes numbers of tokens, for example 8192,32768; not {text[:40]!r}"
        ) from None


def _print_serving(need: ServingNeed) -> None:
    weights = Table(box=None)
    weights.add_column("weights", style="bold", no_wrap=True)
    for title in ("file", "in memory, CPU", "in memory, GPU"):
        weights.add_column(title, justify="right", no_wrap=True)
    for row in need.rows:
        held = (row.file_bytes, row.cpu_bytes, row.gpu_bytes)
        weights.add_row(row.name, *("unknown" if n is None else size(n) for n in held))
    console.print()
    console.print(weights)
    console.print()
    if need.cache is None:
        console.print(f" KV cache and GPUs: not known: {need.cache_unknown}", soft_wrap=True)
    else:
        of = "" if need.sequences == 1 else f", {need.sequences} sequences"
        for cache in need.cache:
            line = f"{size(cache.nbytes)} at {cache.context:,} tokens{of}"
            console.print(f" [bold]KV cache[/]  {line}")
        for cache in need.cache:
            console.print()
            console.print(_gpu_table(need, cache.context))
    console.print()
    allowed = Table(show_header=False, box=None)
    allowed.add_column(style="bold", no_wrap=True)
    allowed.add_column(overflow="fold")
    for degree in need.degrees[1:]:
        mark = "yes" if degree.allowed else "no"
        allowed.add_row(f"TP {degree.gpus}: {mark}", Text(degree.reason))
    allowed.add_row("counted with", Text(need.assumption))
    console.print(allowed)


def _gpu_table(need: ServingNeed, context: int) -> Table:
    """How many GPUs of each size hold one replica, by depth."""
    table = Table(box=None)
    table.add_column(f"GPUs at {context:,} tokens", style="bold", no_wrap=True)
    for gigabytes in GPUS:
        table.add_column(f"of {gigabytes} GB", justify="right", no_wrap=True)
    for row in need.rows:
        fits = [fit for fit in row.fits if fit.context == context]
        table.add_row(row.name, *map(gpus_in_words, fits))
    return table


def gpus_in_words(fit: Fit) -> str:
    """The number of GPUs; 8 x 2 for two pipeline stages of eight."""
    if fit.tensor_parallel is None:
        return "more"
    stages = "" if fit.pipeline_parallel == 1 else f" x {fit.pipeline_parallel}"
    return f"{fit.tensor_parallel}{stages}"


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
        depth = "not quantized by tritllm"
        if facts.born_ternary:
            depth = (
                "born ternary (bitnet): `tritllm quantize --configs uniform-d1` takes it as it is"
            )
        rows += [("depth", depth), ("stored as", dtypes)]
        rows += [("bits per weight", f"{facts.file_bits:.2f}")]
    rows += [("file size", size(facts.weight_bytes))]
    cache = facts.cache_bytes_per_token
    tail = f", plus {size(1000 * cache)} for 1,000 tokens of context" if cache else ""
    packed = f"{size(facts.weight_bytes)} packed, " if facts.depths else ""
    rows += [("memory to run", f"{packed}{size(facts.float_bytes)} in 16 bits{tail}")]
    return rows
