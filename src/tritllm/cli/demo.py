"""tritllm demo: the whole system on a small model, in a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from tritllm.cli.console import console, errors, progress_bar
from tritllm.cli.quantize_text import CalibrationLines
from tritllm.quantities import size
from tritllm.quantizer.encodings import CalibrationProgress
from tritllm.quantizer.shard_pass import Progress
from tritllm.run.demo import DemoResult, Row, demo


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
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="File of another text to calibrate on. Another model is calibrated only with one."
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=0, help="Tokens to calibrate on; by default the whole text, 0 calibrates nothing."
        ),
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="The prompt that the model continues at each depth.")
    ] = "And the LORD said unto",
) -> None:
    """Quantize a small model at four depths, data-free and calibrated; verify, measure, let it
    speak.
    """
    console.print("quantizing at four depths, data-free and calibrated, verifying, measuring ...")
    with progress_bar() as bar:
        task = bar.add_task("quantizing")

        told = -1

        def on_progress(step: Progress) -> None:
            nonlocal told
            tenth = 10 * step.done_bytes // step.total_bytes
            if not errors.is_terminal and tenth > told:  # no terminal to draw a bar on
                errors.print(f"quantizing: {10 * tenth} %")
                told = tenth
            bar.update(task, completed=step.done_bytes, total=step.total_bytes)

        lines = CalibrationLines()

        def on_calibration(step: CalibrationProgress) -> None:
            bar.update(task, description=lines.show(step), completed=step.done, total=step.total)
            if step.done >= step.total:
                bar.update(task, description="verifying, then measuring quality")
                if not errors.is_terminal:
                    errors.print("verifying, then measuring quality: some 40 seconds or more")

        result = demo(
            out,
            model=model,
            text=text,
            calibrate=calibrate,
            tokens=tokens,
            prompt=prompt,
            on_progress=on_progress,
            on_calibration=on_calibration,
        )
    _print(result)


def _name(row: Row) -> str:
    return f"{row.name}, calibrated" if row.calibrated else row.name


def _print(result: DemoResult) -> None:
    table = Table(title="Depth and quality", title_justify="left", box=None)
    table.add_column("config", no_wrap=True)
    for column in ("bits", "file", "SQNR dB", "perplexity", "KL nats", "verify"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in result.rows:
        table.add_row(
            _name(row),
            f"{row.bits_per_weight:.2f}",
            size(row.file_bytes),
            "-" if row.sqnr_db is None else f"{row.sqnr_db:.2f}",
            f"{row.perplexity:.2f}",
            f"{row.mean_kl:.6f}",
            row.verified,
        )
    console.print(table)
    for row in result.rows:
        line = Text(f"{_name(row):>22}  ", style="bold")
        line.append(f"{result.prompt} ", style="dim")
        line.append(row.sample, style="not bold")
        console.print(line, soft_wrap=True)
    cost = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items())
    peak = result.peak_memory_bytes
    console.print(f"{cost}; peak memory {'unknown' if peak is None else size(peak)} (with torch)")
    console.print(f"plot: {result.plot}", markup=False, soft_wrap=True)
