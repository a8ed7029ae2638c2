"""`tritllm`: collects the commands and turns their errors into one line."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from tritllm.cli import (
    bench,
    card,
    dequantize,
    doctor,
    generate,
    info,
    push,
    quantize,
    serve,
    verify,
)
from tritllm.cli import demo as demo_command
from tritllm.cli.console import errors
from tritllm.errors import TritError
from tritllm.version import __version__

STOPPED = 130

app = typer.Typer(
    help="Balanced-ternary quantization of language models: quantize, prove, read, publish.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("quantize")(quantize.command)
app.command("info")(info.command)
app.command("verify")(verify.command)
app.command("dequantize")(dequantize.command)
app.command("card")(card.command)
app.command("push")(push.command)
app.command("doctor")(doctor.command)
app.command("generate")(generate.command)
app.command("serve")(serve.command)
app.command("bench")(bench.command)
app.command("demo")(demo_command.command)


@app.callback(invoke_without_command=True)
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Options of the program itself."""
    if version:
        print(f"tritllm {__version__}")
        raise typer.Exit


def run(application: typer.Typer = app) -> None:
    """Entry point: exit 0 when done, 1 with one line for what the user can mend, 130 if stopped."""
    try:
        application(standalone_mode=True)
    except TritError as error:
        errors.print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        sys.exit(1)
    except SystemExit as end:
        if end.code == STOPPED:  # what typer makes of a KeyboardInterrupt
            errors.print("stopped; run the same command again to go on", style="yellow")
        raise
