"""Quantize the demo model at four depths, data-free and calibrated; prove, measure, hear it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from tritllm.checkpoint.verify import verify
from tritllm.errors import TritError, first_line
from tritllm.evaluation.corpus import read_text
from tritllm.extras import require
from tritllm.format.trits import DEPTHS
from tritllm.quantizer.encodings import CalibrationProgress
from tritllm.quantizer.report import Report, peak_memory_bytes
from tritllm.quantizer.shard_pass import Progress
from tritllm.run.loading import check_text
from tritllm.run.quantize import quantize

if TYPE_CHECKING:
    from tritllm.evaluation.quality import Quality

CONFIGS = tuple(f"uniform-d{depth}" for depth in DEPTHS)
CALIBRATED = "calibrated"  # folder of the calibrated configs
PLOT = "perplexity.png"


@dataclass(frozen=True)
class Row:
    """One line of the demo's table. The float model has no bits, SQNR or verdict of its own.

    name: of the config. calibrated: whether its digits were chosen on a text.
    """

    name: str
    calibrated: bool
    bits_per_weight: float
    file_bytes: int
    sqnr_db: float | None
    perplexity: float
    mean_kl: float
    sample: str
    verified: str


@dataclass(frozen=True)
class DemoResult:
    """Rows (the float model first), the plot's path, and what the run cost."""

    rows: list[Row]
    prompt: str
    plot: Path
    seconds: dict[str, float]
    peak_memory_bytes: int | None


def demo(
    out: str | Path = Path("demo-out"),
    *,
    model: str | Path | None = None,
    text: str | Path | None = None,
    calibrate: str | Path | None = None,
    tokens: int | None = None,
    prompt: str = "And the LORD said unto",
    on_progress: Callable[[Progress], None] | None = None,
    on_calibration: Callable[[CalibrationProgress], None] | None = None,
) -> DemoResult:
    """Run the demo; an existing `out` of an earlier demo is written anew.

    Every depth is quantized data-free, into out/configs, and calibrated, into out/calibrated.

    Args:
        out: output folder; the plot goes to out/perplexity.png.
        model: a causal model folder; default is the model that ships with tritllm.
        text: held-out text to measure on; default is the one that ships.
        calibrate: text to calibrate on; default is a part of the shipped model's training text,
            and no calibration for another model.
        tokens: of that text; default is all of it, 0 leaves calibration out.
        prompt: what each depth continues.
        on_progress: passed to `quantize`.
        on_calibration: passed to `quantize`.

    Raises TritError where torch, transformers or matplotlib is missing, `out` is not a demo's, or
    the text or the prompt is not text.
    """
    require("the demo", "demo", "matplotlib", "torch", "transformers")
    import transformers

    from tritllm.evaluation.quality import measure_quality

    out = Path(out)
    check_text(prompt, "the prompt")
    if not prompt:
        raise TritError("the prompt has no tokens; give some text")
    data = files("tritllm") / "demo_data"
    with as_file(data) as folder:
        source = Path(model) if model else folder / "model"
        heldout = read_text(text or folder / "heldout.txt").content
        if calibrate is None and model is None:
            calibrate = folder / "calibration.txt"
        if calibrate is not None:
            read_text(calibrate, "--calibrate")  # a fault in it is said before anything is done
        transformers.utils.logging.disable_progress_bar()
        _clear(out)
        seconds: dict[str, float] = {}
        reports: dict[str, Report] = {}  # by the folder of a config below `out`
        with _timed(seconds, "quantize"):
            for report in quantize(str(source), CONFIGS, out / "configs", on_progress=on_progress):
                reports[f"configs/{report['config']}"] = report
        if calibrate is not None and tokens != 0:
            with _timed(seconds, "calibrate"):
                for report in quantize(
                    str(source),
                    CONFIGS,
                    out / CALIBRATED,
                    calibrate=calibrate,
                    tokens=tokens,
                    on_calibration=on_calibration,
                ):
                    reports[f"{CALIBRATED}/{report['config']}"] = report
        with _timed(seconds, "verify"):
            for name in reports:
                verify(out / name / "packed")  # raises at the first fault
        folders = {name: out / name / "model" for name in reports}
        started = time.monotonic()
        try:
            qualities = measure_quality(source, folders, heldout, prompt)
        except ValueError as error:
            raise TritError(f"{text or source}: cannot be measured: {first_line(error)}") from error
    seconds["measure"] = time.monotonic() - started
    rows = _rows(reports, qualities)
    plot = _plot(out, rows, source.name if model else "demo model")
    return DemoResult(rows, prompt, plot, seconds, peak_memory_bytes())


def _clear(out: Path) -> None:
    """Remove an earlier demo's results, and nothing else."""
    if not os.path.lexists(out):
        return
    if not out.is_dir() or out.is_symlink():
        raise TritError(f"{out}: exists and is not a folder; choose another with --out")
    foreign = [
        path.name for path in out.iterdir() if path.name not in ("configs", CALIBRATED, PLOT)
    ]
    if foreign:
        raise TritError(
            f"{out}: holds {foreign[0]}, not of a demo; choose another folder with --out"
        )
    shutil.rmtree(out)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[name] = time.monotonic() - started


def _rows(reports: dict[str, Report], qualities: dict[str, Quality]) -> list[Row]:
    """The float model, then depth by depth, data-free before calibrated."""
    measured = qualities["float"]
    rows = [
        Row(
            "float16",
            False,
            16.0,
            next(iter(reports.values()))["model_bytes"],
            None,
            measured.scores.perplexity,
            measured.scores.mean_kl,
            measured.sample,
            "-",
        )
    ]
    for name in sorted(reports, key=lambda name: reports[name]["config"]):  # else as they came
        report, measured = reports[name], qualities[name]
        rows.append(
            Row(
                report["config"],
                name.startswith(CALIBRATED),
                report["bits_per_weight"]["quantized"],
                report["packed_bytes"],
                report["sqnr_db"]["mean"],
                measured.scores.perplexity,
                measured.scores.mean_kl,
                measured.sample,
                "ok",
            )
        )
    return rows


def _plot(out: Path, rows: list[Row], name: str) -> Path:
    from tritllm.evaluation.plot import Point, plot_quality

    points = [
        Point(
            row.name.removeprefix("uniform-"),
            "calibrated" if row.calibrated else "data-free",
            row.bits_per_weight,
            row.file_bytes,
            row.mean_kl,
            row.perplexity,
        )
        for row in rows[1:]
    ]
    path = out / PLOT
    plot_quality(path, points, rows[0].perplexity, f"{name}: what a depth costs")
    return path
