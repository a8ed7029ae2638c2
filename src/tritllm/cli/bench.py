"""tritllm bench: how fast a packed model runs here, beside the same model dequantized."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from tritllm.cli.console import console, errors
from tritllm.cli.options import (
    Compiled,
    Device,
    Draft,
    Dtype,
    LmHeadDepth,
    PackedModel,
    Planes,
    TorchThreads,
)
from tritllm.quantities import size
from tritllm.run.bench import Benchmark, Speed, bench


def command(
    folder: PackedModel,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of the random prompt; by default 512, or what fits."),
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Number of tokens to decode.")] = 32,
    planes: Planes = None,
    lm_head_depth: LmHeadDepth = None,
    dtype: Dtype = "bfloat16",
    threads: TorchThreads = None,
    compare: Annotated[bool, typer.Option(help="Also measure the same model dequantized.")] = True,
    compiled: Compiled = False,
    device: Device = "cpu",
    draft: Draft = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one line of JSON, sizes in bytes.")
    ] = False,
) -> None:
    """Measure prefill and decode speed, memory, and the share of the memory's bandwidth."""
    with errors.status("") as status:
        result = bench(
            folder,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            planes=planes,
            lm_head_depth=lm_head_depth,
            dtype=dtype,
            threads=threads,
            compare=compare,
            compiled=compiled,
            device=device,
            draft=draft,
            on_step=status.update,
        )
    if as_json:
        print(json.dumps(asdict(result)))
    else:
        _print(result)


def _print(result: Benchmark) -> None:
    speeds = [speed for speed in (result.packed, result.drafted, result.dequantized) if speed]
    table = Table(box=None)
    table.add_column("", style="bold", no_wrap=True)
    for speed in speeds:
        table.add_column(speed.name, justify="right", no_wrap=True)
    rows: dict[str, Callable[[Speed], str]] = {
        f"prefill of {result.prompt_tokens}, tokens/s": lambda speed: f"{speed.prefill:.1f}",
        "decode, tokens/s": lambda speed: f"{speed.decode:.2f}",
        "weights in memory": lambda speed: size(speed.weight_bytes),
        "weights a token reads": lambda speed: size(speed.token_bytes),
        "share of memory bandwidth": lambda speed: f"{100 * speed.bandwidth_share:.0f} %",
        "memory in use": lambda speed: size(speed.resident_bytes),
    }
    for name, value in rows.items():
        table.add_row(name, *map(value, speeds))
    console.print(table)
    if result.draft:
        console.print(str(result.draft), soft_wrap=True)
    if result.dequantized:
        faster = result.packed.decode / result.dequantized.decode
        console.print(f"decode: packed is {faster:.2f} times {result.dequantized.name}")
    console.print(
        f"{result.threads} threads, memory read at {result.bandwidth / 1e9:.1f} GB/s, "
        f"linear layers by {result.kernels}",
        soft_wrap=True,
    )
