"""What `tritllm quantize` prints: the plan, how far it is, and a summary at the end."""

from __future__ import annotations

import re
import time
from typing import Any

from rich.table import Table

from tritllm.cli.console import console, errors
from tritllm.model_card.encoder import lines_of_encoder
from tritllm.quantities import count, duration, size
from tritllm.quantizer.coverage import judgement
from tritllm.quantizer.encodings import CalibrationProgress
from tritllm.quantizer.plan import Plan
from tritllm.quantizer.report import Report
from tritllm.quantizer.shard_pass import Progress

WORST = 10  # weights named one by one at the end
_STEP_PERCENT = 5


class TimeLeft:
    """An estimate from how long what is done has taken since the first call."""

    def __init__(self) -> None:
        self._began: tuple[float, float] | None = None  # time, and what was done then

    def ending(self, done: float, total: float) -> str:
        """What a line of progress ends in; empty where there is nothing to tell."""
        now = time.monotonic()
        began, before = self._began = self._began or (now, done)
        if not before < done < total:
            return ""
        return f"  about {duration((now - began) * (total - done) / (done - before))} left"


class ProgressLines:
    """A line on standard error every few percent, where no terminal shows a bar."""

    def __init__(self) -> None:
        self._next = 0
        self._left = TimeLeft()

    def show(self, step: Progress) -> None:
        """Say how far the run is, if it is time to."""
        percent = 100 * step.done_bytes // max(step.total_bytes, 1)
        ending = self._left.ending(step.done_bytes, step.total_bytes)
        if errors.is_terminal or percent < self._next:
            return
        self._next = percent - percent % _STEP_PERCENT + _STEP_PERCENT
        decibels = "".join(f"  {name} {value:.2f}" for name, value in step.sqnr_db.items())
        errors.print(
            f"{percent:3} %  {size(step.done_bytes)} of {size(step.total_bytes)}  "
            f"{step.part.name}{'  SQNR dB:' if decibels else ''}{decibels}"
            f"{ending}",
            markup=False,
            soft_wrap=True,
        )


class CalibrationLines:
    """Says how far a calibrator is: as a text beside a bar, or a line every few percent."""

    def __init__(self) -> None:
        self._activity = ""
        self._next = 0
        self._left = TimeLeft()

    def show(self, step: CalibrationProgress) -> str:
        """The text to show beside a bar; printed, if it is time to, where no terminal shows one."""
        if step.activity != self._activity:
            self._activity, self._next, self._left = step.activity, 0, TimeLeft()
        ending = self._left.ending(step.done, step.total)
        losses = "".join(
            f"  {name} {step.loss_before[name]:.3g} -> {after:.3g}"
            for name, after in step.loss_after.items()
        )
        text = f"{step.activity} {step.where}{f'  {step.measure}' if losses else ''}{losses}"
        percent = int(100 * step.done / step.total) if step.total else 100
        if not errors.is_terminal and percent >= self._next:
            self._next = percent - percent % _STEP_PERCENT + _STEP_PERCENT
            errors.print(f"{percent:3} %  {text}{ending}", markup=False, soft_wrap=True)
        return text


def print_plan(plan: Plan) -> None:
    """What is quantized, what is kept and why, and what it takes."""
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
        f"disk needed {size(plan.disk_bytes)}, peak memory about {size(plan.peak_memory)}"
    )
    if plan.calibration:
        console.print(
            f"calibrating takes up to {size(plan.calibration.disk)} of that disk until the run "
            f"ends, and about {size(plan.calibration.memory)} of memory"
        )


def print_reports(reports: list[Report]) -> None:
    """A line a kind of layer, the worst weights, and a line a config; report.json has all."""
    kinds: dict[str, list[str]] = {}
    for name in reports[0]["quantized"]:
        kinds.setdefault(_kind(name), []).append(name)
    columns = [f"{report['config']}, SQNR dB mean and lowest" for report in reports]
    rows = []
    for kind, names in kinds.items():
        weights = sum(_weights(reports[0]["quantized"][name]) for name in names)
        cells = [_decibels_of([report["quantized"][name] for name in names]) for report in reports]
        rows.append([kind, str(len(names)), count(weights), *cells])
    _print_columns(["kind of layer", "number", "weights", *columns], rows)

    worst = sorted(reports[0]["quantized"], key=lambda name: _lowest(reports, name))[:WORST]
    _print_columns(
        [
            "weights with the lowest SQNR",
            "shape",
            *(f"{report['config']}, depth, NMSE, SQNR dB" for report in reports),
        ],
        [
            [
                name,
                "x".join(map(str, reports[0]["quantized"][name]["shape"])),
                *(_errors_of(report["quantized"][name]) for report in reports),
            ]
            for name in worst
        ],
    )
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
        for line in lines_of_report(report):
            console.print(f"  {line}", markup=False, soft_wrap=True)
    peak = reports[-1]["peak_memory_bytes"]
    console.print(
        f"{reports[-1]['seconds']:.1f} s, peak memory {'unknown' if peak is None else size(peak)}"
    )


def lines_of_report(report: Report) -> list[str]:
    """How a config's digits were chosen, and what that brought."""
    encoder = lines_of_encoder(report.get("encoder", {}))
    return [*encoder, *_losses_of(report), *_training_of(report)]


def _losses_of(report: Report) -> list[str]:
    """What calibration brought; it costs SQNR, which counts all errors of a weight alike."""
    matrices = report.get("calibration", {}).get("matrices", {}).values()
    pairs = [
        (matrix["loss_before"], matrix["loss_after"])
        for matrix in matrices
        if matrix.get("loss_before") is not None and matrix.get("loss_after") is not None
    ]
    if not pairs:
        return []
    before, after = (sum(losses) / len(pairs) for losses in zip(*pairs, strict=True))
    return [
        f"error of the layers' outputs on that text, relative, mean over matrices: {before:.3g} "
        f"data-free, {after:.3g} calibrated"
    ]


def _training_of(report: Report) -> list[str]:
    """What training brought, on windows that it never saw."""
    calibration = report.get("calibration", {})
    lines = []
    records = [matrix.get("trained") for matrix in calibration.get("matrices", {}).values()]
    blocks = list({record["block_before"]: record for record in records if record}.values())
    if blocks:
        before = sum(block["block_before"] for block in blocks) / len(blocks)
        after = sum(block["block_after"] for block in blocks) / len(blocks)
        lines.append(
            "error of the blocks' outputs on windows held back from training, relative, mean over "
            f"blocks: {before:.3g} calibrated, {after:.3g} trained"
        )
    if tuned := calibration.get("training"):
        lines.append(
            "KL divergence on windows held back from training, nats a token: "
            f"{tuned['loss_before']:.3g} before, {tuned['loss_after']:.3g} after step "
            f"{tuned['kept_step']} of {tuned['steps']}, which is kept"
        )
    broken = [each["broke_off"] for each in [*blocks, tuned] if each and each["broke_off"]]
    if broken:
        which = ", ".join(map(str, broken))
        lines.append(f"training broke off where the loss was not finite, at step {which}")
    return lines


def _decibel(value: float | None) -> str:
    return "exact" if value is None else f"{value:.2f}"


def _kind(name: str) -> str:
    """What layers of a kind have in common: the name below the layer, experts put together."""
    starred = re.sub(r"\b\d+\b", "*", name.removesuffix(".weight"))
    return starred.split("*.", 1)[-1]


def _weights(result: dict[str, Any]) -> int:
    rows, columns = result["shape"]
    return int(rows * columns)


def _decibels_of(results: list[dict[str, Any]]) -> str:
    found = [result["sqnr_db"] for result in results if result["sqnr_db"] is not None]
    if not found:
        return "exact"
    return f"{sum(found) / len(found):.2f} {min(found):.2f}"


def _errors_of(result: dict[str, Any]) -> str:
    return f"{result['depth']} {result['nmse']:.2e} {_decibel(result['sqnr_db'])}"


def _lowest(reports: list[Report], name: str) -> float:
    found = [report["quantized"][name]["sqnr_db"] for report in reports]
    return min((value for value in found if value is not None), default=float("inf"))


def _print_columns(heads: list[str], rows: list[list[str]]) -> None:
    """A table whose first column is text; it is as wide as it has to be."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, *rows):
        first = row[0].ljust(widths[0])
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        console.print("  ".join([first, *cells]), markup=False, soft_wrap=True)
