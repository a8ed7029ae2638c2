"""Quantizing a model, with all that may choose its digits: the public function.

The core (`tritllm.quantizer`) knows configs and a calibrator; here a command's words become them.
Torch is loaded only where something has to run the model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tritllm.errors import TritError
from tritllm.evaluation.corpus import Text, read_dataset, read_text
from tritllm.extras import require
from tritllm.quantizer import quantize as core
from tritllm.quantizer.configs import Config, nested_config
from tritllm.quantizer.encodings import CalibrationProgress, Calibrator
from tritllm.quantizer.plan import Plan
from tritllm.quantizer.report import Report
from tritllm.quantizer.shard_pass import Progress

_DATASET = r"[\w-][\w.-]*/[\w.-]+(?<!\.txt)(,.*)?"  # of the Hub; anything else is a file


def quantize(
    model: str,
    configs: Sequence[str],
    out: str | Path,
    *,
    revision: str | None = None,
    stream: bool = False,
    codec: str = "v3",
    write: Sequence[str] = ("packed", "model"),
    dtype: str = "float16",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    depth: Sequence[str] = (),
    calibrate: str | Path | None = None,
    tokens: int | None = None,
    context: int | None = None,
    seed: int = 0,
    device: str | None = None,
    nested: Sequence[int] = (),
    threads: int | None = None,
    allow_low_coverage: bool = False,
    dry_run: bool = False,
    on_plan: Callable[[Plan], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_calibration: Callable[[CalibrationProgress], None] | None = None,
) -> list[Report]:
    """Quantize a model under several configs in one pass; resumes an interrupted run.

    Args:
        model: local folder or Hub id.
        configs: names such as "uniform-d2"; each gives OUT/<config>/packed and OUT/<config>/model.
        out: the output folder.
        revision: branch, tag or commit of a Hub id.
        stream: read a Hub id in place by byte ranges, store nothing of it.
        codec: "v3" (least error) or "v2" (the published rule).
        write: "packed", "model" (dequantized, for stock transformers), or both.
        dtype: of the dequantized model, "float16" or "bfloat16".
        include: module globs to quantize although their names are not recognised.
        exclude: module globs to keep.
        depth: overrides GLOB=DEPTH, module globs.
        calibrate: a text to calibrate on: a file in UTF-8, or a dataset of the Hub as
            "OWNER/NAME,CONFIG,SPLIT,COLUMN". Digits are then chosen for the outputs of the layers
            on it, and not for the weights alone. Not a text that is measured on.
        tokens: of the text, rounded down to windows; default is 262,144, or what the text has.
        context: tokens a window; default is 2,048, or as many as the model takes.
        seed: of the choice of windows.
        device: of torch, that calibration runs on; default is a GPU where there is one.
        nested: depths at which one file is meant to be read, say (2, 4); gives one more config,
            "nested-d2-d4", whose two top planes are a calibrated model of depth 2.
        threads: for the codec; default is the number of processors granted.
        allow_low_coverage: go on where the family is unknown, or fewer than half of the parameters
            (without embeddings and output layer) are quantized.
        dry_run: stop after the plan.
        on_plan: called with the plan before anything is written.
        on_progress: called after each tensor.
        on_calibration: called while the model is calibrated, stage by stage.

    Returns one report a config (none for a dry run).

    Raises TritError (SourceError, FormatError, OutputError): one line, nothing half-written under
    a final name, everything finished kept.
    """
    all_configs: list[str | Config] = [*configs]
    if nested:
        all_configs.append(nested_config(nested))
    calibrator = None
    if calibrate is not None:
        calibrator = _calibrator(calibrate, tokens, context, seed, device)
    else:
        _refuse_unused(tokens=tokens, context=context, seed=seed or None, device=device)
    return core.quantize(
        model,
        all_configs,
        out,
        revision=revision,
        stream=stream,
        codec=codec,
        write=write,
        dtype=dtype,
        include=include,
        exclude=exclude,
        depth=depth,
        threads=threads,
        allow_low_coverage=allow_low_coverage,
        dry_run=dry_run,
        calibrator=calibrator,
        on_plan=on_plan,
        on_progress=on_progress,
        on_calibration=on_calibration,
    )


def _calibrator(
    calibrate: str | Path,
    tokens: int | None,
    context: int | None,
    seed: int,
    device: str | None,
) -> Calibrator:
    require("calibration", "transformers", "torch", "transformers")
    import torch

    from tritllm.calibration.calibrator import TextCalibrator

    return TextCalibrator(
        _text(calibrate),
        tokens=tokens,
        context=context,
        seed=seed,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )


def _refuse_unused(**options: object) -> None:
    """Raise TritError for an option that says how to calibrate, where nothing is calibrated."""
    for name, value in options.items():
        if value is not None:
            raise TritError(f"--{name} has no effect without --calibrate TEXT; give both")


def _text(calibrate: str | Path) -> Text:
    """A file's text, or a dataset's; known by the bare name of the file."""
    if os.path.exists(calibrate) or not re.fullmatch(_DATASET, str(calibrate)):
        return replace(read_text(calibrate, "--calibrate"), name=Path(calibrate).name)
    return read_dataset(str(calibrate), split="train")
