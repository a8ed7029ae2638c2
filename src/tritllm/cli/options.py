"""Options that several commands take, each declared once."""

from __future__ import annotations

from typing import Annotated

import typer

PackedModel = Annotated[str, typer.Argument(help="A packed folder, or the Hub id of one.")]
Planes = Annotated[
    int | None,
    typer.Option(min=1, max=4, help="Read only so many of the trit planes, the top ones."),
]
LmHeadDepth = Annotated[
    int | None,
    typer.Option(min=1, max=4, help="Quantize lm_head as well, at this depth."),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Dtype of activations and unquantized weights: auto (the file's), float16, bfloat16 "
        "or float32."
    ),
]
TorchThreads = Annotated[
    int | None, typer.Option(min=1, help="Number of threads; torch's choice by default.")
]
CodecThreads = Annotated[
    int | None, typer.Option(min=1, help="Number of threads; one a processor by default.")
]
Compiled = Annotated[
    bool,
    typer.Option(help="Compile the decode step first; pays for models without a native one."),
]
