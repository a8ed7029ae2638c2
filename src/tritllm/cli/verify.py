"""tritllm verify: recompute everything a packed folder claims."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tritllm.cli.console import console, progress_bar
from tritllm.quantities import size
from tritllm.quantizer.verify_source import Compared
from tritllm.run.verify import verify


def command(
    folder: Annotated[Path, typer.Argument(help="A packed folder.")],
    source: Annotated[
        str | None,
        typer.Option(help="Also compare every weight with this model: a folder or a Hub id."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of --source, a Hub id.")
    ] = None,
) -> None:
    """Check a packed folder: hashes, shapes, index, every trit, every codebook."""
    with progress_bar() as bar:
        task = bar.add_task("verifying")
        found = verify(
            folder,
            source,
            revision,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(
        f"{folder}: verified, {found.quantized} quantized weights, {found.tensors} tensors and "
        f"{found.side_files} other files, {size(found.nbytes)}",
        markup=False,
        soft_wrap=True,
    )
    for name in found.foreign:
        console.print(f"  not part of the checkpoint: {name}", markup=False, soft_wrap=True)
    if found.compared:
        line = f"{source}: {_described(found.compared)}"
        console.print(line, markup=False, soft_wrap=True)


def _described(found: Compared) -> str:
    lossy = found.matrices - found.exact
    parts = [f"{found.exact} of {found.matrices} matrices have every trit and weight of it"]
    if lossy:
        parts.append(
            f"{lossy} the errors that the manifest states, SQNR {found.lowest_sqnr_db:.2f} dB "
            "at least"
        )
    parts.append(f"{found.kept} other tensors are equal")
    if found.trained:
        parts.append(f"{found.trained} were trained")
    return "; ".join(parts)
