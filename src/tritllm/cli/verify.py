"""tritllm verify: recompute everything a packed folder claims."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tritllm.checkpoint.verify import verify
from tritllm.cli.console import console, progress_bar, size


def command(folder: Annotated[Path, typer.Argument(help="A packed folder.")]) -> None:
    """Check a packed folder: hashes, shapes, index, every trit, every codebook."""
    with progress_bar() as bar:
        task = bar.add_task("verifying")
        found = verify(
            folder, on_progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    console.print(
        f"{folder}: verified, {found.quantized} quantized weights, {found.tensors} tensors and "
        f"{found.side_files} other files, {size(found.nbytes)}",
        markup=False,
        soft_wrap=True,
    )
    for name in found.foreign:
        console.print(f"  not part of the checkpoint: {name}", markup=False, soft_wrap=True)
