"""The `tritllm` command: its subcommands, collected."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

from tritllm.version import __version__

# A word here is `command` of the file beside this one that has its name.
COMMANDS = (
    "quantize", "info", "report", "verify", "dequantize", "card", "push", "doctor",
    "eval", "generate", "chat", "serve", "bench", "demo",
)  # fmt: skip

app = typer.Typer(
    help="Balanced-ternary quantization of language models: quantize, prove, read, publish.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _name in COMMANDS:
    app.command(_name)(import_module(f"tritllm.cli.{_name}").command)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Options of the program itself."""
    if version:
        print(f"tritllm {__version__}")
        raise typer.Exit
