"""tritllm quantize: a model at one or several depths, in one pass."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tritllm.cli.console import console, count, errors, progress_bar, size
from tritllm.cli.options import CodecThreads
from tritllm.quantizer.coverage import judgement
from tritllm.quantizer.plan import Plan
from tritllm.quantizer.quantize import quantize
from tritllm.quantizer.report import Report
from tritllm.quantizer.shard_pass import Progress


def command(
    model: Annotated[str, typer.Option(help="Local folder or Hub id of the source.")],
    configs: Annotated[str, typer.Option(help="uniform-d1 .. uniform-d4, several with commas.")],
    out: Annotated[Path, typer.Option(help="Folder for <config>/packed and <config>/model.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    stream: Annotated[bool, typer.Option(help="Read a Hub id in place, store nothing.")] = False,
    codec: Annotated[str, typer.Option(help="v3 (least error) or v2 (as published).")] = "v3",
    write: Annotated[str, typer.Option(help="packed, model, or both.")] = "packed,model",
    dtype: Annotated[
        str, typer.Option(help="Float dtype of the dequantized model: float16 or bfloat16.")
    ] = "float16",
    include: Annotated[
        list[str] | None, typer.Option(help="Module glob to quantize too. Repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Module glob to keep. Repeatable.")
    ] = None,
    depth: Annotated[
        list[str] | None,
        typer.Option(
            help="GLOB=DEPTH, module glob whose depth overrides the config's. Repeatable."
        ),
    ] = None,
    threads: CodecThreads = None,
    allow_low_coverage: Annotated[
        bool,
        typer.Option(
            help="Go on with an unknown model family, or where less than half of the parameters "
            "besides embeddings and output layer is quantized."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and stop.")] = False,
) -> None:
    """Quantize a model: packed trits, and the same weights dequantized for stock transformers.

    An interrupted run goes on where it stopped when the same command is given again.
    """
    with progress_bar() as bar:
        task = bar.add_task("quantizing", total=None, visible=False)

        begun = False  # something is finished, and kept

        def on_progress(step: Progress) -> None:
            nonlocal begun
            begun = True
            bar.update(task, total=step.total_bytes, completed=step.done_bytes, visible=True)
            if step.sqnr_db:
                errors.print(_tensor_line(step), markup=False, soft_wrap=True)

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
                on_plan=_print_plan,
                on_progress=on_progress,
            )
        except KeyboardInterrupt:
            if not begun:
                raise
            raise KeyboardInterrupt("stopped; run the same command again to go on") from None
    if dry_run and not reports:
        console.print("dry run: nothing written")
        return
    _print_reports(reports)
    for report in reports:
        for kind in report["fingerprint"]["write"]:
            console.print(f"{out / report['config'] / kind}", markup=False, soft_wrap=True)


def _tensor_line(step: Progress) -> str:
    shape = "x".join(map(str, step.tensor.matrix_shape))
    decibels = "  ".join(f"d{depth} {value:.2f}" for depth, value in step.sqnr_db.items())
    return f"{step.tensor.entry.name}  {shape}  SQNR dB: {decibels}"


def _print_plan(plan: Plan) -> None:
    console.print(
        f"{plan.source.files.name}: {plan.source.model_type}, {count(plan.parameters)} parameters "
        f"in {len(plan.source.shards)} shard(s); {len(plan.quantized)} linear weights to quantize, "
        f"{100 * plan.coverage:.1f} % of the parameters",
        markup=False,
        soft_wrap=True,
    )
    if doubt := judgement(plan):
        console.print(
            f"  low coverage: {doubt}; goes on with --allow-low-coverage only",
            markup=False,
            soft_wrap=True,
            style="yellow",
        )
    reasons: dict[str, list[str]] = {}
    for tensor in plan.all_tensors:
        if not tensor.decision.quantize:
            reasons.setdefault(tensor.decision.reason, []).append(tensor.entry.name)
    for reason, names in reasons.items():
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        console.print(f"  kept, {reason}: {len(names)} ({shown})", markup=False, soft_wrap=True)
    for name, reason in plan.source.not_copied.items():
        console.print(f"  not copied: {name} ({reason})", markup=False, soft_wrap=True)
    table = Table(title="Plan", title_justify="left")
    table.add_column("config")
    for kind in plan.kinds:
        table.add_column(kind, justify="right")
    for config in plan.configs:
        sizes = [size(plan.output_bytes(config, kind)) for kind in plan.kinds]
        table.add_row(config.name, *sizes)
    console.print(table)
    console.print(
        f"disk needed {size(plan.disk_bytes)}, peak memory about {size(plan.memory.peak)}"
    )


def _print_reports(reports: list[Report]) -> None:
    """One row a tensor, the configs side by side; then one line a config."""
    names = list(reports[0]["quantized"])
    width = max(map(len, names))
    console.print(f"{'linear weight':<{width}}  {'shape':>12}  depth, NMSE and SQNR dB")
    for name in names:
        results = [report["quantized"][name] for report in reports]
        shape = "x".join(map(str, results[0]["shape"]))
        cells = "   ".join(
            f"{result['depth']} {result['nmse']:.2e} {_decibel(result['sqnr_db']):>5}"
            for result in results
        )
        console.print(f"{name:<{width}}  {shape:>12}  {cells}", markup=False, soft_wrap=True)
    for report in reports:
        bits = report["bits_per_weight"]
        console.print(
            f"{report['config']}, codec {report['codec']}: {report['coverage_percent']:.1f} % of "
            f"{count(report['parameters'])} parameters at {bits['quantized']:.3f} bits a weight in "
            f"the file, {bits['whole_file']:.3f} with all that is kept; SQNR mean "
            f"{_decibel(report['sqnr_db']['mean'])} dB, lowest "
            f"{_decibel(report['sqnr_db']['lowest'])} dB; packed {size(report['packed_bytes'])}, "
            f"16-bit {size(report['model_bytes'])}",
            soft_wrap=True,
        )
    peak = reports[-1]["peak_memory_bytes"]
    console.print(
        f"{reports[-1]['seconds']:.1f} s, peak memory {'unknown' if peak is None else size(peak)}"
    )


def _decibel(value: float | None) -> str:
    return "exact" if value is None else f"{value:.2f}"
