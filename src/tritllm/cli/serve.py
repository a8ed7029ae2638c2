"""tritllm serve: an OpenAI-compatible server on a packed model."""

from __future__ import annotations

from typing import Annotated

import typer

from tritllm.integrations.serving import serve


def command(
    folder: Annotated[str, typer.Argument(help="A packed folder, or a Hub id of one.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "localhost",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float16, bfloat16 or float32.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Default: torch's choice.")] = None,
) -> None:
    """Serve a packed model with transformers' OpenAI-compatible server, until stopped."""
    serve(folder, host=host, port=port, device=device, dtype=dtype, threads=threads)
