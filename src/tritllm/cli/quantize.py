"""tritllm quantize: a model at one or several depths, in one pass."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tritllm.cli.console import console, errors, progress_bar
from tritllm.cli.options import CodecThreads
from tritllm.cli.quantize_text import CalibrationLines, ProgressLines, print_plan, print_reports
from tritllm.errors import TritError
from tritllm.quantizer.encodings import CalibrationProgress
from tritllm.quantizer.shard_pass import Progress
from tritllm.run.quantize import quantize


def command(
    model: Annotated[str, typer.Option(help="Local folder or Hub id of the source model.")],
    out: Annotated[
        Path, typer.Option(help="Folder to write <config>/packed and <config>/model to.")
    ],
    configs: Annotated[
        str,
        typer.Option(
            help="uniform-d1 .. uniform-d4; qat-d1 .. qat-d4, whose blocks are trained; or mixed "
            "depths: target-3.25bpw for so many bits a weight, sens-0.02 for so much divergence in "
            "nats. Several with commas."
        ),
    ] = "",
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
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT|DATASET",
            help="Choose the digits for what the layers do on this text: a file in UTF-8, or a "
            "dataset of the Hub as OWNER/NAME,CONFIG,SPLIT,COLUMN.",
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens of that text to use; by default 262,144, or what the text has."
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=2, help="Tokens a window; by default 2,048, or as many as the model takes."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of the text's windows.")] = 0,
    device: Annotated[
        str | None,
        typer.Option(
            help="Device of torch that the model is calibrated on; by default a GPU where there "
            "is one."
        ),
    ] = None,
    nested: Annotated[
        str,
        typer.Option(
            metavar="D,D",
            help="Also write one file to be read at each of these depths, say 2,4. Needs "
            "--calibrate.",
        ),
    ] = "",
    sensitivity_text: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT|DATASET",
            help="For mixed depths: measure on this text what each depth costs; by default on that "
            "of --calibrate.",
        ),
    ] = None,
    sensitivities: Annotated[
        Path | None,
        typer.Option(
            help="For mixed depths: the file that keeps what was measured, used again if it is "
            "there; by default OUT/sensitivities.json."
        ),
    ] = None,
    picture: Annotated[
        bool, typer.Option(help="Also draw the depth of every layer: OUT/<config>/depths.png.")
    ] = False,
    qat: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT|DATASET",
            help="Calibrate on this text, and train each block to give what the float model's "
            "block gives.",
        ),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(
            help="Train the whole calibrated model to predict what the float model predicts: about "
            "26 bytes of memory a weight."
        ),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps of training: of each block (by default 100), of the model (600)."
        ),
    ] = None,
    threads: CodecThreads = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|auto",
            help="Have the shards done by the machines of a Ray cluster: auto for the one that "
            "this machine belongs to, or HOST:PORT. Source and output are folders that all "
            "machines see at the same paths. The same bytes; --threads are then processors a "
            "shard.",
        ),
    ] = None,
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
    # Read when torch loads. Calibrating is many small operations; threads that spin between them
    # take the cores from each other where anything else runs (measured: a third of the time).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with progress_bar() as bar:
        task = bar.add_task("quantizing", total=None, visible=False)

        lines, calibration = ProgressLines(), CalibrationLines()
        begun = False  # something is finished, and kept

        def on_progress(step: Progress) -> None:
            nonlocal begun
            begun = True
            bar.update(
                task,
                description="writing" if calibrate or qat else "quantizing",
                total=step.total_bytes,
                completed=step.done_bytes,
                visible=True,
            )
            lines.show(step)

        def on_calibration(step: CalibrationProgress) -> None:
            nonlocal begun
            begun = True
            text = calibration.show(step)
            bar.update(task, description=text, total=step.total, completed=step.done, visible=True)

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
                calibrate=calibrate,
                tokens=tokens,
                context=context,
                seed=seed,
                device=device,
                nested=_depths(nested),
                sensitivity_text=sensitivity_text,
                sensitivities=sensitivities,
                picture=picture,
                qat=qat,
                tune=tune,
                steps=steps,
                threads=threads,
                ray=ray,
                allow_low_coverage=allow_low_coverage,
                dry_run=dry_run,
                on_plan=print_plan,
                on_progress=on_progress,
                on_calibration=on_calibration,
                on_notice=lambda line: errors.print(line, markup=False, soft_wrap=True),
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


def _depths(nested: str) -> list[int]:
    try:
        return [int(depth) for depth in nested.split(",") if depth]
    except ValueError:
        raise TritError(f"--nested {nested!r} is not depths with commas, say 2,4") from None
