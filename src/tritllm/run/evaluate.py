"""What models lose against a reference, on a text or on tasks, beside what they take."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tritllm.errors import TritError
from tritllm.evaluation.sizes import Size, size_of, weights_of
from tritllm.evaluation.token_scores import Estimate, Statistics, TokenScores
from tritllm.extras import require
from tritllm.quantizer.report import peak_memory_bytes
from tritllm.run.evaluated_model import EXACT, EvaluatedModel, find_models
from tritllm.run.evaluation_protocol import EvaluationProtocol, read_protocol
from tritllm.run.loading import check_dtype, load_tokenizer, quiet, set_threads
from tritllm.storage.output_errors import output_errors
from tritllm.storage.shard_writer import write_atomically

if TYPE_CHECKING:
    from tritllm.evaluation.tasks import TaskScore

REFERENCE = "reference"  # its name in tables
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EvaluatedRow:
    """One model: what it takes and what it loses.

    made: "data-free", "calibrated", "trained" or "other". statistics: None without a text; tasks:
    by name, empty without tasks.
    """

    name: str
    path: str
    kind: str
    made: str
    planes: int | None
    size: Size
    statistics: Statistics | None
    tasks: Mapping[str, TaskScore]


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`. reference: None where there was none; its statistics are None."""

    protocol: EvaluationProtocol | None
    reference: EvaluatedRow | None
    reference_perplexity: Estimate | None
    models: Sequence[EvaluatedRow]
    seconds: float
    peak_memory_bytes: int | None

    def to_json(self) -> str:
        """Everything, as one JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"


def evaluate(
    folders: Sequence[str | Path],
    *,
    reference: str | Path | None = None,
    text: str | Path | None = None,
    dataset: str | None = None,
    context: int | None = None,
    stride: int | None = None,
    bos: str = "auto",
    windows: int | None = None,
    batch: int | None = None,
    dtype: str = "float32",
    planes: Sequence[int] = (),
    cache: str | Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
    tasks: Sequence[str] = (),
    tasks_folder: str | Path | None = None,
    limit: int | None = None,
    json_file: str | Path | None = None,
    plot_file: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Measure models beside a reference on a text, or on tasks of lm-evaluation-harness, or both.

    Args:
        folders: packed folders, any folder that transformers loads, GGUF files or Hub ids.
        reference: the model they are compared with, and the tokenizer of the text.
        text: a file of UTF-8 text.
        dataset: a dataset instead: NAME,CONFIG,SPLIT,COLUMN.
        context: tokens a window; default is 512, or the model's context where that is shorter.
        stride: a window begins so many tokens after the one before it; default: they do not
            overlap.
        bos: "auto": windows begin with the BOS token if the tokenizer puts it before a text;
            "always", "never".
        windows: only the first so many windows of the text.
        batch: windows a forward pass; by default 8, fewer where their logits take 256 MiB.
        dtype: that all models compute in.
        planes: read packed folders with these numbers of trit planes, one row each.
        cache: folder for the reference's logits, where the models do not fit in memory together,
            or the reference is to be used again.
        device: torch's name of the device that runs the models.
        threads: torch's; default is torch's own choice.
        tasks: names of tasks, "seeds8" for the eight of the published tables.
        tasks_folder: a folder with tasks of one's own; the harness's own are then left out.
        limit: only the first so many examples of each task.
        json_file: write everything there.
        plot_file: write plots of divergence and perplexity against size there, as PNG.
        on_progress: called with what is being done, how much of it is done, and of how much.

    Raises TritError for arguments that make no sense, folders that do not load, texts that are
    none, logits that are no numbers, or a package that is missing.
    """
    require("eval", "transformers", "torch", "transformers")
    started = time.monotonic()
    check_dtype(dtype)
    measures = text is not None or dataset is not None
    _check_arguments(folders, reference, text, dataset, tasks, measures, plot_file, windows, batch)
    set_threads(threads)
    quiet()
    tell = on_progress or (lambda what, done, total: None)
    models = find_models(folders, planes)
    base = None
    if reference is not None:
        base = dataclasses.replace(find_models([reference], ())[0], name=REFERENCE)
    weights = weights_of(base.path) if base is not None and base.path.is_dir() else None
    sizes = [size_of(model.path, weights, model.planes) for model in models]

    protocol: EvaluationProtocol | None = None
    scores: Mapping[str, TokenScores] = {}
    if measures and base is not None:
        from tritllm.run.measure_models import check_vocabularies, measure_models

        protocol, cut = read_protocol(
            base, text, dataset, context, stride, bos, windows, dtype, device, cache is not None
        )
        check_vocabularies(base, models)
        scores = measure_models(base, models, protocol, cut, batch, cache, tell)
    measured = [scores[model.name].statistics() if scores else None for model in models]
    done = [_tasks(m, tasks, tasks_folder, limit, dtype, device, batch, tell) for m in models]
    rows = [
        EvaluatedRow(m.name, str(m.path), m.kind, m.made, m.planes, size, statistics, task)
        for m, size, statistics, task in zip(models, sizes, measured, done, strict=True)
    ]
    base_row = None
    if base is not None:
        base_tasks = _tasks(base, tasks, tasks_folder, limit, dtype, device, batch, tell)
        base_row = EvaluatedRow(
            base.name, str(base.path), base.kind, base.made, None,
            size_of(base.path, weights), None, base_tasks,
        )  # fmt: skip
    result = Evaluation(
        protocol,
        base_row,
        measured[0].reference_perplexity if measured and measured[0] else None,
        rows,
        time.monotonic() - started,
        peak_memory_bytes(),
    )
    if json_file is not None:
        write_atomically(Path(json_file), result.to_json().encode())
    if plot_file is not None:
        _plot(Path(plot_file), result)
    return result


def _check_arguments(
    folders: Sequence[str | Path],
    reference: str | Path | None,
    text: str | Path | None,
    dataset: str | None,
    tasks: Sequence[str],
    measures: bool,
    plot_file: str | Path | None,
    windows: int | None,
    batch: int | None,
) -> None:
    if not folders:
        raise TritError("nothing to evaluate; name a folder")
    if text is not None and dataset is not None:
        raise TritError("--text and --dataset are two texts; give one")
    if not measures and not tasks:
        raise TritError("nothing to measure; give --text FILE or --dataset NAME, or --tasks")
    if measures and reference is None:
        raise TritError("a text needs --reference, the model to compare with")
    if plot_file is not None:
        if not measures:
            raise TritError("--plot needs a text")
        if Path(plot_file).suffix.lower() != ".png":
            raise TritError(f"--plot {plot_file}: the name of a PNG file ends in .png")
        require("--plot", "demo", "matplotlib")
    if tasks:
        require("--tasks", "tasks", "lm_eval")
    for name, number in (("--windows", windows), ("--batch", batch)):
        if number is not None and number < 1:
            raise TritError(f"{name} {number} is less than 1")


def _tasks(
    model: EvaluatedModel,
    tasks: Sequence[str],
    folder: str | Path | None,
    limit: int | None,
    dtype: str,
    device: str,
    batch: int | None,
    tell: OnProgress,
) -> Mapping[str, TaskScore]:
    if not tasks:
        return {}
    from tritllm.evaluation.tasks import run_tasks

    tell(f"tasks: {model.name}", 0, 1)
    scores = run_tasks(
        model.load(dtype, device, EXACT),
        load_tokenizer(model.path),
        tasks,
        folder=Path(folder) if folder is not None else None,
        limit=limit,
        batch=batch,
    )
    tell(f"tasks: {model.name}", 1, 1)
    return scores


def _plot(path: Path, result: Evaluation) -> None:
    from tritllm.evaluation.plot import Point, plot_quality

    points = [
        Point(
            row.name, row.made, row.size.weight_bits or row.size.parameter_bits or math.nan,
            row.size.file_bytes, row.statistics.kl.mean.value, row.statistics.perplexity.value,
        )
        for row in result.models if row.statistics
    ]  # fmt: skip
    assert result.reference is not None
    assert result.reference_perplexity is not None
    title = f"beside {Path(result.reference.path).name}"
    with output_errors(path):
        plot_quality(path, points, result.reference_perplexity.value, title)
