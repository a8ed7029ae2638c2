"""The `tritllm` command: its subcommands, collected."""

from __future__ import annotations

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
from tritllm.version import __version__

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
