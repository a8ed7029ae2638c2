"""Quantize the demo model at four depths in one pass, prove, measure, and let it speak."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from tritllm.checkpoint.verify import verify
from tritllm.errors import TritError, first_line
from tritllm.extras import require
from tritllm.quantizer.configs import CONFIG_NAMES
from tritllm.quantizer.report import Report, peak_memory_bytes
from tritllm.quantizer.shard_pass import Progress
from tritllm.run.loading import check_text
from tritllm.run.quantize import quantize

if TYPE_CHECKING:
    from tritllm.evaluation.quality import Quality


@dataclass(frozen=True)
class Row:
    """One line of the demo's table. The float model has no bits, SQNR or verdict of its own."""

    name: str
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
    prompt: str = "And the LORD said unto",
    on_progress: Callable[[Progress], None] | None = None,
) -> DemoResult:
    """Run the demo; an existing `out` of an earlier demo is written anew.

    Args:
        out: output folder; the plot goes to out/perplexity.png.
        model: a causal model folder; default is the model that ships with tritllm.
        text: held-out text to measure on; default is the one that ships.
        prompt: what each depth continues.
        on_progress: passed to `quantize`.

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
        heldout = _read(Path(text) if text else folder / "heldout.txt")
        _clear(out)
        started = time.monotonic()
        reports = quantize(str(source), CONFIG_NAMES, out / "configs", on_progress=on_progress)
        quantized = time.monotonic()
        for report in reports:
            verify(out / "configs" / report["config"] / "packed")  # raises at the first fault
        verified = time.monotonic()

        transformers.utils.logging.disable_progress_bar()
        folders = {
            report["config"]: out / "configs" / report["config"] / "model" for report in reports
        }
        try:
            qualities = measure_quality(source, folders, heldout, prompt)
        except ValueError as error:
            raise TritError(f"{text or source}: cannot be measured: {first_line(error)}") from error
    measured = time.monotonic()
    rows = _rows(reports, qualities)
    plot = _plot(out, rows, source.name if model else "demo model")
    seconds = {
        "quantize": quantized - started,
        "verify": verified - quantized,
        "measure": measured - verified,
    }
    return DemoResult(rows, prompt, plot, seconds, peak_memory_bytes())


def _clear(out: Path) -> None:
    """Remove an earlier demo's results, and nothing else."""
    if not os.path.lexists(out):
        return
    if not out.is_dir() or out.is_symlink():
        raise TritError(f"{out}: exists and is not a folder; choose another with --out")
    foreign = [
        path.name for path in out.iterdir() if path.name not in ("configs", "perplexity.png")
    ]
    if foreign:
        raise TritError(
            f"{out}: holds {foreign[0]}, not of a demo; choose another folder with --out"
        )
    shutil.rmtree(out)


def _read(text: Path) -> str:
    try:
        return text.read_text("utf-8")
    except UnicodeDecodeError:
        raise TritError(f"{text}: not UTF-8 text; give another with --text") from None
    except OSError as error:
        raise TritError(f"{text}: {error.strerror}; give a text with --text") from None


def _rows(reports: list[Report], qualities: dict[str, Quality]) -> list[Row]:
    measured = qualities["float"]
    rows = [
        Row(
            "float16",
            16.0,
            reports[0]["model_bytes"],
            None,
            measured.scores.perplexity,
            measured.scores.mean_kl,
            measured.sample,
            "-",
        )
    ]
    for report in reports:
        measured = qualities[report["config"]]
        rows.append(
            Row(
                report["config"],
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
    from tritllm.evaluation.plot import plot_perplexity

    path = out / "perplexity.png"
    points = [
        (row.name.removeprefix("uniform-"), row.bits_per_weight, row.perplexity) for row in rows
    ]
    plot_perplexity(path, points[1:], rows[0].perplexity, f"{name}: what a depth costs")
    return path
