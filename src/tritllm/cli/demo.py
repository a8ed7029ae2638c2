"""tritllm demo: the whole system on a small model, in a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from tritllm.cli.console import console, errors, progress_bar, size
from tritllm.quantizer.shard_pass import Progress
from tritllm.run.demo import DemoResult, demo


def command(
    out: Annotated[
        Path, typer.Option(help="Folder to write; an earlier demo there is replaced.")
    ] = Path("demo-out"),
    model: Annotated[
        Path | None, typer.Option(help="Folder of another causal language model.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="File of another held-out text, in UTF-8.")
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="The prompt that the model continues at each depth.")
    ] = "And the LORD said unto",
) -> None:
    """Quantize a small model at four depths in one pass, verify, measure, and let it speak."""
    console.print("quantizing at four depths in one pass, verifying, measuring ...")
    with progress_bar() as bar:
        task = bar.add_task("quantizing")

        told = -1

        def on_progress(step: Progress) -> None:
            nonlocal told
            tenth = 10 * step.done_bytes // step.total_bytes
            if not errors.is_terminal and tenth > told:  # no terminal to draw a bar on
                errors.print(f"quantizing: {10 * tenth} %")
                told = tenth
                if tenth == 10:
                    errors.print("verifying, then measuring quality: some 20 seconds or more")
            bar.update(task, completed=step.done_bytes, total=step.total_bytes)
            if step.done_bytes == step.total_bytes:
                bar.update(task, description="measuring quality")

        result = demo(out, model=model, text=text, prompt=prompt, on_progress=on_progress)
    _print(result)


def _print(result: DemoResult) -> None:
    table = Table(title="Depth and quality", title_justify="left")
    table.add_column("config", no_wrap=True)
    for column in ("bits/weight", "file", "SQNR dB", "perplexity", "KL nats", "verify"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in result.rows:
        table.add_row(
            row.name,
            f"{row.bits_per_weight:.2f}",
            size(row.file_bytes),
            "-" if row.sqnr_db is None else f"{row.sqnr_db:.2f}",
            f"{row.perplexity:.2f}",
            f"{row.mean_kl:.4f}",
            row.verified,
        )
    console.print(table)
    for row in result.rows:
        line = Text(f"{row.name:>10}  ", style="bold")
        line.append(f"{result.prompt} ", style="dim")
        line.append(row.sample, style="not bold")
        console.print(line, soft_wrap=True)
    cost = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items())
    peak = result.peak_memory_bytes
    console.print(f"{cost}; peak memory {'unknown' if peak is None else size(peak)} (with torch)")
    console.print(f"plot: {result.plot}", markup=False, soft_wrap=True)
