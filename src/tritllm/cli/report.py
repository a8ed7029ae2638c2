"""tritllm report: what each layer of packed folders got, and what it cost, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tritllm.cli.console import console
from tritllm.run.report import report


def command(
    folders: Annotated[
        list[str], typer.Argument(help="Packed folders, or Hub ids of such, side by side.")
    ],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    png: Annotated[
        Path | None, typer.Option(help="Also write the layers as a picture, PNG.")
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            "--eval",
            help="What tritllm eval --json wrote; may be given several times. By default an "
            "eval.json in one of the two folders above.",
        ),
    ] = None,
    sensitivities: Annotated[
        Path | None,
        typer.Option(
            help="What tritllm quantize measured to choose depths; by default a "
            "sensitivities.json in one of the two folders above."
        ),
    ] = None,
) -> None:
    """Write a page of one file: layers by depth, error and sensitivity, sizes, divergence."""
    written = report(
        folders, out=out, png=png, evaluation=evaluation or (), sensitivities=sensitivities
    )
    for path in [written, *([png] if png else [])]:
        console.print(f"{path}: written", markup=False, soft_wrap=True)
