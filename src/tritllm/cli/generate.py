"""tritllm generate: text from a packed model, as it comes."""

from __future__ import annotations

from typing import Annotated

import typer

from tritllm.cli.console import errors
from tritllm.cli.options import (
    Compiled,
    Device,
    Draft,
    Dtype,
    KvCache,
    LmHeadDepth,
    MaxNewTokens,
    PackedModel,
    Planes,
    Seed,
    Temperature,
    TopK,
    TorchThreads,
    VerifyHashes,
)
from tritllm.run.generate import generate


def command(
    folder: PackedModel,
    prompt: Annotated[
        str, typer.Option(help="The text to continue; with --chat, the user's message.")
    ],
    max_new_tokens: MaxNewTokens = 128,
    chat: Annotated[bool, typer.Option(help="Apply the tokenizer's chat template.")] = False,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    seed: Seed = 0,
    planes: Planes = None,
    lm_head_depth: LmHeadDepth = None,
    dtype: Dtype = "auto",
    threads: TorchThreads = None,
    compiled: Compiled = False,
    device: Device = "cpu",
    draft: Draft = None,
    kv_cache: KvCache = None,
    activations: Annotated[
        str | None,
        typer.Option(help="per-token: int8 with one scale a token, as BitNet's models have them."),
    ] = None,
    verify: VerifyHashes = False,
) -> None:
    """Continue a prompt with a packed model; the text goes to standard output as it comes."""
    done = generate(
        folder,
        prompt,
        max_new_tokens=max_new_tokens,
        chat=chat,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
        planes=planes,
        lm_head_depth=lm_head_depth,
        dtype=dtype,
        threads=threads,
        compiled=compiled,
        device=device,
        draft=draft,
        kv_cache=kv_cache,
        activations=activations,
        verify=verify,
        on_text=lambda text: typer.echo(text, nl=False),
    )
    typer.echo()
    if done.context_full:
        errors.print(
            f"stopped where the model's context of {done.context_full} tokens is full",
            style="yellow",
            soft_wrap=True,
        )
    decode = f", {done.decode_speed:.1f} tokens/s after it" if done.decode_speed else ""
    errors.print(
        f"{done.prompt_tokens} prompt tokens at {done.prefill_speed:.1f} tokens/s, "
        f"{done.new_tokens} new tokens, the first after {done.prefill_seconds:.2f} s{decode}",
        style="dim",
        soft_wrap=True,
    )
    if done.draft:
        errors.print(str(done.draft), style="dim", soft_wrap=True)
