"""Configs of mixed depth for a run: checked before anything is measured, then chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tritllm.allocation.goals import is_mixed, parse_goal
from tritllm.allocation.resolve import Measuring, resolve
from tritllm.evaluation.corpus import Text
from tritllm.extras import require
from tritllm.quantizer.configs import Config, parse_config, parse_overrides
from tritllm.quantizer.encodings import CalibrationProgress
from tritllm.quantizer.fingerprint import Settings
from tritllm.quantizer.output_folder import SENSITIVITIES, check_folder
from tritllm.quantizer.plan import make_plan
from tritllm.quantizer.report import REPORT
from tritllm.quantizer.source import open_source
from tritllm.storage.model_files import ModelFiles
from tritllm.storage.output_errors import output_errors


def choose_depths(
    configs: Sequence[str | Config],
    files: ModelFiles,
    out: Path,
    *,
    settings: Settings,
    depth: Sequence[str],
    text: Text | None,
    calibrated: bool,
    sensitivities: Path | None,
    seed: int,
    threads: int,
    device: str,
    dry_run: bool,
    on_progress: Callable[[CalibrationProgress], None] | None,
) -> list[str | Config]:
    """The configs, those of mixed depth with the depth of every module.

    settings: of the run; its configs are not read. text: that costs are measured on. calibrated:
    whether that is the text the run is calibrated on. The other arguments are those of `quantize`.

    Raises TritError before anything is measured where an argument is wrong, the source cannot be
    read, or `out` holds something else, and as `resolve` does.
    """
    goals = [parse_goal(c) for c in configs if isinstance(c, str) and is_mixed(c)]
    names = {goal.name for goal in goals}
    overrides = parse_overrides(depth)
    unknown = {
        config.name: config.overridden(overrides)
        for config in (
            c if isinstance(c, Config) else Config(c, 4) if c in names else parse_config(c)
            for c in configs
        )
    }
    source = open_source(files)
    plan = make_plan(source, replace(settings, configs=tuple(unknown.values())))
    if not all((out / name / REPORT).is_file() for name in unknown):
        with output_errors(out):
            check_folder(plan, out)
    file = sensitivities
    if file is None:
        file = out / SENSITIVITIES
        if not dry_run:
            with output_errors(out):
                out.mkdir(parents=True, exist_ok=True)
        elif not file.exists():
            file = None
    if text is not None:
        require("measuring what depths cost", "transformers", "torch", "transformers")
    measuring = Measuring(
        text, file, seed=seed, threads=threads, device=device, must_exist=sensitivities is not None
    )
    base = Config("measured", 4, overrides)
    resolved = resolve(
        [goal.name for goal in goals], replace(plan, configs=(base,)), measuring, on_progress
    )
    words: tuple[str, ...] = ()
    if text is None and sensitivities is not None:
        words = ("--sensitivities", sensitivities.name)
    elif text is not None and not calibrated:
        words = ("--sensitivity-text", text.name)
    chosen = {  # the quantizer adds the overrides, to these as to all
        config.name: replace(
            config, overrides=(), command_options=("--configs", config.name, *words)
        )
        for config in resolved
    }
    return [chosen.get(c, c) if isinstance(c, str) else c for c in configs]
