"""tritllm serve: an OpenAI-compatible server on a packed model."""

from __future__ import annotations

from typing import Annotated

import typer

from tritllm.cli.options import Dtype, LmHeadDepth, PackedModel, Planes, TorchThreads
from tritllm.run.serve import serve


def command(
    folder: PackedModel,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "localhost",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda:0, ...")] = "auto",
    planes: Planes = None,
    lm_head_depth: LmHeadDepth = None,
    dtype: Dtype = "auto",
    threads: TorchThreads = None,
) -> None:
    """Serve a packed model with transformers' OpenAI-compatible server, until stopped."""
    serve(
        folder,
        host=host,
        port=port,
        device=device,
        planes=planes,
        lm_head_depth=lm_head_depth,
        dtype=dtype,
        threads=threads,
    )
