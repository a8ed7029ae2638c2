"""tritllm quantize: a model at one or several depths, in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tritllm.cli.console import console, progress_bar
from tritllm.cli.options import CodecThreads
from tritllm.cli.quantize_text import ProgressLines, print_plan, print_reports
from tritllm.quantizer.quantize import quantize
from tritllm.quantizer.shard_pass import Progress


def command(
    model: Annotated[str, typer.Option(help="Local folder or Hub id of the source model.")],
    configs: Annotated[
        str, typer.Option(help="Depths: uniform-d1 .. uniform-d4, separated by commas.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder to write <config>/packed and <config>/model to.")
    ],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    stream: Annotated[
        bool, typer.Option(help="Read a Hub id in place and store nothing of it.")
    ] = False,
    codec: Annotated[
        str, typer.Option(help="Encoding rule: v3 (least error) or v2 (as published).")
    ] = "v3",
    write: Annotated[
        str, typer.Option(help="Folders to write: packed, model, or both with a comma.")
    ] = "packed,model",
    dtype: Annotated[
        str, typer.Option(help="Float dtype of the dequantized model: float16 or bfloat16.")
    ] = "float16",
    include: Annotated[
        list[str] | None,
        typer.Option(
            help="Also quantize the modules that match this glob. The option can be repeated."
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="Keep the modules that match this glob as they are. The option can be repeated."
        ),
    ] = None,
    depth: Annotated[
        list[str] | None,
        typer.Option(
            help="GLOB=DEPTH: quantize the modules that match the glob at this depth instead of "
            "the config's. The option can be repeated."
        ),
    ] = None,
    threads: CodecThreads = None,
    allow_low_coverage: Annotated[
        bool,
        typer.Option(
            help="Quantize a model of an unknown family, or one of whose parameters besides "
            "embeddings and output layer less than half would be quantized."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and write nothing.")] = False,
) -> None:
    """Quantize a model: packed trits, and the same weights dequantized for stock transformers.

    An interrupted run goes on where it stopped when the same command is given again.
    """
    with progress_bar() as bar:
        task = bar.add_task("quantizing", total=None, visible=False)

        lines = ProgressLines()
        begun = False  # something is finished, and kept

        def on_progress(step: Progress) -> None:
            nonlocal begun
            begun = True
            bar.update(task, total=step.total_bytes, completed=step.done_bytes, visible=True)
            lines.show(step)

        try:
            reports = quantize(
                model,
                [name for name in configs.split(",") if name],
                out,
                revision=revision,
                stream=stream,
                codec=codec,
                write=[kind for kind in write.split(",") if kind],
                dtype=dtype,
                include=include or (),
                exclude=exclude or (),
                depth=depth or (),
                threads=threads,
                allow_low_coverage=allow_low_coverage,
                dry_run=dry_run,
                on_plan=print_plan,
                on_progress=on_progress,
            )
        except KeyboardInterrupt:
            if not begun:
                raise
            raise KeyboardInterrupt("stopped; run the same command again to go on") from None
    if dry_run and not reports:
        console.print("dry run: nothing written")
        return
    print_reports(reports)
    for report in reports:
        for kind in report["fingerprint"]["write"]:
            console.print(f"{out / report['config'] / kind}", markup=False, soft_wrap=True)
