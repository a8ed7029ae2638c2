"""tritllm serve: an OpenAI-compatible server on a packed model."""

from __future__ import annotations

from typing import Annotated

import typer

from tritllm.cli.options import (
    Draft,
    Dtype,
    KvCache,
    LmHeadDepth,
    PackedModel,
    Planes,
    TorchThreads,
)
from tritllm.run.serve import serve


def command(
    folder: PackedModel,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "localhost",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="Key that requests must send as a bearer token. Better set it in the environment "
            "as TRITLLM_API_KEY, where the list of processes does not show it."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Device to run on: auto, cpu, cuda:0 ...")] = "auto",
    planes: Planes = None,
    lm_head_depth: LmHeadDepth = None,
    dtype: Dtype = "auto",
    threads: TorchThreads = None,
    draft: Draft = None,
    kv_cache: KvCache = None,
) -> None:
    """Serve a packed model with transformers' OpenAI-compatible server, until stopped.

    There is no encryption, and no authentication unless a key is set: without one, whoever reaches
    the port may use the model. /v1/models lists the folder; a browser finds a chat page at /.
    """
    serve(
        folder,
        host=host,
        port=port,
        api_key=api_key,
        device=device,
        planes=planes,
        lm_head_depth=lm_head_depth,
        dtype=dtype,
        threads=threads,
        draft=draft,
        kv_cache=kv_cache,
    )
