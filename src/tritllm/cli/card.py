"""tritllm card: write a packed folder's README.md anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tritllm.cli.console import console
from tritllm.publish.card import card


def command(folder: Annotated[Path, typer.Argument(help="A packed folder.")]) -> None:
    """Write the model card anew from the manifest; the licence it states stays."""
    console.print(f"{card(folder)}: written", markup=False, soft_wrap=True)
