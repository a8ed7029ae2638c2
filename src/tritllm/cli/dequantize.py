"""tritllm dequantize: a packed folder to one that stock transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tritllm.checkpoint.dequantize import dequantize
from tritllm.cli.console import console, progress_bar
from tritllm.cli.options import CodecThreads, Planes


def command(
    packed: Annotated[Path, typer.Argument(help="A packed folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must be empty or not exist.")],
    planes: Planes = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Dtype of the model: float16 or bfloat16; by default as recorded."),
    ] = None,
    threads: CodecThreads = None,
) -> None:
    """Write the 16-bit model that a packed folder stands for, bit for bit."""
    with progress_bar() as bar:
        task = bar.add_task("dequantizing")
        folder = dequantize(
            packed,
            out,
            planes=planes,
            dtype=dtype,
            threads=threads,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(f"{folder}: written", markup=False, soft_wrap=True)
