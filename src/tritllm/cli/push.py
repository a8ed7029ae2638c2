"""tritllm push: publish a finished folder on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tritllm.cli.console import console
from tritllm.publish.push import push


def command(
    folder: Annotated[Path, typer.Argument(help="A packed or dequantized folder.")],
    repository: Annotated[
        str, typer.Argument(help="Hub id (owner/name); created if it does not exist.")
    ],
    private: Annotated[bool, typer.Option(help="Make a new repository private.")] = False,
) -> None:
    """Upload a folder to the Hugging Face Hub; a packed one is verified first."""
    console.print(push(folder, repository, private=private), markup=False, soft_wrap=True)
