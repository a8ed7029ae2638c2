"""Options that several commands take, each declared once."""

from __future__ import annotations

from typing import Annotated

import typer

PackedModel = Annotated[str, typer.Argument(help="A packed folder, or the Hub id of one.")]
Planes = Annotated[
    int | None,
    typer.Option(min=1, max=4, help="Read only this many trit planes, the most significant ones."),
]
LmHeadDepth = Annotated[
    int | None,
    typer.Option(min=1, max=4, help="Also quantize lm_head, at this depth."),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Dtype of activations and unquantized weights: auto (the file's), float16, bfloat16 "
        "or float32."
    ),
]
Device = Annotated[
    str, typer.Option(help="Device that runs the model, as torch names it: cpu, cuda, cuda:1 ...")
]
TorchThreads = Annotated[
    int | None, typer.Option(min=1, help="Number of threads; by default torch's choice.")
]
CodecThreads = Annotated[
    int | None, typer.Option(min=1, help="Number of threads; by default one per processor.")
]
Compiled = Annotated[
    bool,
    typer.Option(
        help="Compile the decode step with torch.compile first, which takes a minute or so; worth "
        "it for long texts of a model that the native decode step does not run."
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        help="Draft tokens and verify them with the whole model, which changes the speed alone: "
        "planes=N of its own planes, the number of them that pays here, if any (auto), or a packed "
        "folder of the same model, such as a calibrated one of depth 1."
    ),
]
KvCache = Annotated[
    str | None,
    typer.Option(
        help="int8 keeps keys and values in 9 bits an element, not 16; by default they are of "
        "the model's dtype."
    ),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Maximum number of new tokens.")]
Temperature = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="Sampling temperature; 0 always takes the most likely token, and without one the "
        "model's own settings hold.",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Sample among this many of the most likely tokens; by default 50, or what the model's "
        "own settings say.",
    ),
]
Seed = Annotated[int | None, typer.Option(help="Random seed for sampling.")]
VerifyHashes = Annotated[
    bool, typer.Option("--verify", help="Check every hash against the manifest first.")
]
