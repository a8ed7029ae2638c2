"""Standard tasks, by lm-evaluation-harness, on a model in memory. Needs `lm_eval[hf]`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritllm.errors import TritError, first_line

# The six of the Open LLM Leaderboard's first version with its shots, and two that the harness runs
# without any: together the eight that tables of quantized models show.
SEEDS8: Mapping[str, int] = {
    "arc_challenge": 25,
    "arc_easy": 0,
    "gsm8k": 5,
    "hellaswag": 10,
    "mmlu": 5,
    "piqa": 0,
    "truthfulqa_mc2": 0,
    "winogrande": 5,
}
SETS: Mapping[str, Mapping[str, int]] = {"seeds8": SEEDS8}
# The one figure of a task that tables show: the first of these that it has.
_METRICS = ("acc_norm,none", "exact_match,strict-match", "acc,none", "exact_match,none")


@dataclass(frozen=True)
class TaskScore:
    """A task's main figure, and all others.

    metric: its name, as the harness gives it (METRIC,FILTER). value, error: the figure and its
    standard error; None where the harness gives none. shots: examples in the prompt; None where
    the parts of a group differ. metrics: every figure of the task, by name.
    """

    metric: str
    value: float
    error: float | None
    shots: int | None
    metrics: Mapping[str, float]


def run_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    folder: Path | None = None,
    limit: int | None = None,
    batch: int | None = None,
) -> dict[str, TaskScore]:
    """Run tasks on a causal language model of transformers.

    Args:
        model: the model, loaded.
        tokenizer: its tokenizer.
        tasks: names of the harness's tasks or groups, with the shots that they come with, and
            names of SETS.
        folder: tasks of one's own, in the harness's YAML; the harness's own are then not known.
        limit: only the first so many examples of each task.
        batch: sequences a forward pass; default 1.

    The harness downloads the tasks' data unless the environment says HF_HUB_OFFLINE=1 and they
    are at hand. Raises TritError for a task that is unknown, or whatever the harness raises.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    if folder is not None and not folder.is_dir():
        raise TritError(f"--tasks-folder {folder}: no such folder")
    try:
        manager = TaskManager(
            include_path=str(folder) if folder else None, include_defaults=folder is None
        )
        known = set(manager.all_tasks)
    except Exception as error:
        raise TritError(f"--tasks-folder {folder}: {first_line(error)}") from error
    asked = _with_shots(tasks, known)
    language_model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch or 1)
    scores: dict[str, TaskScore] = {}
    for shots in dict.fromkeys(asked.values()):  # one run for each number of shots
        names = [name for name, number in asked.items() if number == shots]
        try:
            found = simple_evaluate(
                model=language_model,
                tasks=names,
                num_fewshot=shots,
                limit=limit,
                task_manager=manager,
                bootstrap_iters=1000,
                log_samples=False,
                verbosity="ERROR",
            )
        except Exception as error:  # whatever a task, its data or the harness raises
            raise TritError(f"tasks {', '.join(names)}: {first_line(error)}") from error
        for name in names:
            results = found["results"] | found.get("groups", {})
            scores[name] = _score(name, results[name], found.get("n-shot", {}).get(name))
    return {name: scores[name] for name in asked}


def _with_shots(tasks: Sequence[str], known: set[str]) -> dict[str, int | None]:
    """Shots by task; None takes those that the task comes with."""
    asked: dict[str, int | None] = {}
    for task in tasks:
        asked |= SETS.get(task, {task: None})
    for task in asked:
        if task not in known:
            raise TritError(
                f"--tasks {task}: no such task; there are {len(known)}"
                + (f": {', '.join(sorted(known))}" if len(known) <= 8 else "")
                + f", and the set{'s' if len(SETS) > 1 else ''} {', '.join(SETS)}"
            )
    return asked


def _score(name: str, results: Mapping[str, Any], shots: Any) -> TaskScore:
    metrics = {key: float(value) for key, value in results.items() if _is_figure(key, value)}
    values = [key for key in metrics if "_stderr," not in key]
    metric = next((key for key in _METRICS if key in metrics), next(iter(values), None))
    if metric is None:
        raise TritError(f"task {name}: the harness gives no figure")
    error = metrics.get(metric.replace(",", "_stderr,", 1))
    return TaskScore(
        metric, metrics[metric], error, shots if isinstance(shots, int) else None, metrics
    )


def _is_figure(key: str, value: Any) -> bool:
    return "," in key and isinstance(value, int | float) and math.isfinite(value)
