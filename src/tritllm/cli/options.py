"""Options that several commands take, each declared once."""

from __future__ import annotations

from typing import Annotated

import typer

PackedModel = Annotated[str, typer.Argument(help="A packed folder, or a Hub id of one.")]
Planes = Annotated[
    int | None, typer.Option(min=1, max=4, help="Read only so many of the trit planes.")
]
LmHeadDepth = Annotated[
    int | None, typer.Option(min=1, max=4, help="Quantize lm_head, too, at this depth.")
]
Dtype = Annotated[str, typer.Option(help="auto, float16, bfloat16 or float32.")]
TorchThreads = Annotated[int | None, typer.Option(min=1, help="Default: torch's choice.")]
CodecThreads = Annotated[int | None, typer.Option(min=1, help="Default: every processor.")]
Compiled = Annotated[
    bool, typer.Option(help="Compile the decode step first; pays where it is not native.")
]
