"""tritllm eval: what models lose against a reference, beside what they take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tritllm.cli.console import errors, progress_bar
from tritllm.cli.eval_text import print_evaluation
from tritllm.cli.options import Device, TorchThreads
from tritllm.errors import TritError
from tritllm.run.evaluate import evaluate


def command(
    folders: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR...",
            help="Packed folders, other model folders, GGUF files or Hub ids.",
            show_default=False,
        ),
    ],
    reference: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id of the float model; its tokenizer reads the text."),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="File of text in UTF-8.")] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="A dataset instead, NAME,CONFIG,SPLIT,COLUMN; NAME alone may do."),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens a window; by default 512, or the model's context if shorter."),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            help="Begin a window so many tokens after the one before it; by default they do not "
            "overlap."
        ),
    ] = None,
    bos: Annotated[
        str,
        typer.Option(
            help="Begin windows with the BOS token: auto (if the tokenizer begins texts so), "
            "always or never."
        ),
    ] = "auto",
    windows: Annotated[
        int | None, typer.Option(help="Measure only the first so many windows of the text.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Windows a forward pass; by default 8, fewer for large vocabularies."),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(help="Dtype that all models compute in: float32, bfloat16, float16 or auto."),
    ] = "float32",
    planes: Annotated[
        str,
        typer.Option(
            help="Read packed folders with so many trit planes; several with commas, one row each."
        ),
    ] = "",
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the reference's logits: one model at a time is then in memory, and "
            "the next run with the same reference and text begins from there."
        ),
    ] = None,
    device: Device = "cpu",
    threads: TorchThreads = None,
    tasks: Annotated[
        str,
        typer.Option(
            help="Tasks of lm-evaluation-harness, separated by commas; seeds8 is a set of eight."
        ),
    ] = "",
    tasks_folder: Annotated[
        Path | None, typer.Option(help="Folder with tasks of your own, in the harness's YAML.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Run only the first so many examples of each task.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything to this file, as JSON.")
    ] = None,
    plot_file: Annotated[
        Path | None,
        typer.Option("--plot", help="Write plots of divergence and perplexity against size, PNG."),
    ] = None,
) -> None:
    """Measure models beside a reference: KL divergence, perplexity, agreement, tasks."""
    try:
        numbers = [int(number) for number in planes.split(",") if number]
    except ValueError:
        raise TritError(f"--planes {planes}: numbers, separated by commas") from None
    with progress_bar() as bar:
        task = bar.add_task("", total=None)
        told = ""

        def on_progress(what: str, done: int, total: int) -> None:
            nonlocal told
            if not errors.is_terminal and what != told:
                errors.print(f"{what} ...", markup=False, soft_wrap=True)
            told = what
            bar.update(task, description=what, completed=done, total=total)

        try:
            result = evaluate(
                folders,
                reference=reference,
                text=text,
                dataset=dataset,
                context=context,
                stride=stride,
                bos=bos,
                windows=windows,
                batch=batch,
                dtype=dtype,
                planes=numbers,
                cache=cache,
                device=device,
                threads=threads,
                tasks=[name for name in tasks.split(",") if name],
                tasks_folder=tasks_folder,
                limit=limit,
                json_file=json_file,
                plot_file=plot_file,
                on_progress=on_progress,
            )
        except KeyboardInterrupt:
            if cache is None:
                raise
            raise KeyboardInterrupt("stopped; run the same command again to go on") from None
    print_evaluation(result)
