"""Quantizing a model, with all that may choose its digits: the public function.

The core (`tritllm.quantizer`) knows configs and a calibrator; here a command's words become them.
Torch is loaded only where something has to run the model.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tritllm.allocation.goals import FORMS, is_mixed
from tritllm.errors import TritError
from tritllm.evaluation.corpus import Text, read_dataset, read_text
from tritllm.extras import require
from tritllm.machine import processors
from tritllm.quantizer import quantize as core
from tritllm.quantizer.configs import Config, nested_config
from tritllm.quantizer.encodings import CalibrationProgress, Calibrator
from tritllm.quantizer.fingerprint import Settings
from tritllm.quantizer.plan import Plan
from tritllm.quantizer.report import Report
from tritllm.quantizer.shard_pass import Progress
from tritllm.quantizer.shard_workers import ShardWorkers
from tritllm.run.mixed_depths import choose_depths
from tritllm.run.training_options import text_of, with_training
from tritllm.storage.model_files import open_files
from tritllm.storage.output_errors import output_errors

if TYPE_CHECKING:
    from tritllm.calibration.calibrator import TextCalibrator

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
    sensitivity_text: str | Path | None = None,
    sensitivities: str | Path | None = None,
    picture: bool = False,
    qat: str | Path | None = None,
    tune: bool = False,
    steps: int | None = None,
    threads: int | None = None,
    ray: str | None = None,
    allow_low_coverage: bool = False,
    dry_run: bool = False,
    on_plan: Callable[[Plan], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_calibration: Callable[[CalibrationProgress], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> list[Report]:
    """Quantize a model under several configs in one pass; resumes an interrupted run.

    Args:
        model: local folder or Hub id.
        configs: names such as "uniform-d2", or of mixed depth: "target-3.25bpw" for so many bits a
            quantized weight, "sens-0.02" for a divergence of so many nats a token. Each gives
            OUT/<config>/packed and OUT/<config>/model.
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
        sensitivity_text: a text, as for `calibrate`, on which it is measured what depths cost, for
            configs of mixed depth alone; default is that of `calibrate`.
        sensitivities: the file where what was measured is kept, and taken from if it is there;
            default is OUT/sensitivities.json.
        picture: also write OUT/<config>/depths.png, which shows the depth of every layer.
        qat: as `calibrate`, and each block is then trained to give what the float model's block
            gives; configs named "qat-d2" alone where there are such, which imply it.
        tune: train the whole calibrated model to predict what the float model predicts: steps,
            norms, biases, then levels.
        steps: of training: of each block (default is 100) and of the whole model (600).
        threads: for the codec; default is the number of processors granted. With `ray`: processors
            a shard; default is so many that all shards are done at once, if there are enough.
        ray: "auto" for the Ray cluster that this machine belongs to, or its HOST:PORT; its machines
            do the shards, and see source and output at the same paths. The bytes are the same.
            Not with a text to calibrate on; what depths cost is measured on this machine.
        allow_low_coverage: go on where the family is unknown, or fewer than half of the parameters
            (without embeddings and output layer) are quantized.
        dry_run: stop after the plan.
        on_plan: called with the plan before anything is written.
        on_progress: called after each tensor.
        on_calibration: called while the model is calibrated, stage by stage.
        on_notice: called with a line about the cluster: what it offers, a worker that died.

    Returns one report a config (none for a dry run).

    Raises TritError (SourceError, FormatError, OutputError): one line, nothing half-written under
    a final name, everything finished kept.
    """
    if picture:
        require("a picture of the depths", "demo", "matplotlib")
    all_configs: list[str | Config] = [*configs]
    mixed = any(map(is_mixed, configs))
    if nested:
        all_configs.append(nested_config(nested))
    calibrator: Calibrator | None = None
    text = text_of(calibrate, qat, all_configs, tune, steps)
    option = "--calibrate" if qat is None else "--qat"
    if text is not None and ray is not None:
        raise TritError(f"{option} runs the model, on one machine; leave --ray out")
    workers = None if ray is None else _workers(ray, threads, on_notice)
    if text is not None:
        calibrated = _calibrator(text, option, tokens, context, seed, device)
        calibrator = with_training(calibrated, all_configs, qat is not None, tune, steps)
    else:
        _refuse_unused(tokens=tokens, context=context)
        if not mixed:
            _refuse_unused(seed=seed or None, device=device)
    if mixed:
        measured_on = text if sensitivity_text is None else sensitivity_text
        all_configs = choose_depths(
            all_configs,
            open_files(model, revision, stream),
            Path(out),
            settings=Settings((), tuple(write), codec, dtype, tuple(include), tuple(exclude)),
            depth=depth,
            text=None
            if measured_on is None
            else _text(measured_on, option if sensitivity_text is None else "--sensitivity-text"),
            calibrated=text is not None and sensitivity_text is None,
            sensitivities=None if sensitivities is None else Path(sensitivities),
            seed=seed,
            threads=threads or processors(),
            device=_device(device),
            dry_run=dry_run,
            on_progress=on_calibration,
        )
    elif sensitivity_text is not None or sensitivities is not None:
        raise TritError(
            "--sensitivity-text and --sensitivities have no effect without a config of mixed "
            f"depth: {FORMS}"
        )
    reports = core.quantize(
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
        workers=workers,
        on_plan=on_plan,
        on_progress=on_progress,
        on_calibration=on_calibration,
    )
    for report in reports if picture else ():
        _draw(Path(out), report)
    return reports


def _workers(
    address: str, threads: int | None, on_notice: Callable[[str], None] | None
) -> ShardWorkers:
    from tritllm.cluster.ray_workers import RayWorkers

    return RayWorkers(address, threads, on_notice)


def _draw(out: Path, report: Report) -> None:
    from tritllm.allocation.picture import draw_depths

    path = out / report["config"] / "depths.png"
    depths = {
        name.removesuffix(".weight"): tensor["depth"]
        for name, tensor in report["quantized"].items()
    }
    bits = report["bits_per_weight"]["quantized"]
    with output_errors(path):
        draw_depths(path, depths, f"{report['config']}: {bits:.2f} bits a quantized weight")


def _calibrator(
    text: str | Path,
    option: str,
    tokens: int | None,
    context: int | None,
    seed: int,
    device: str | None,
) -> TextCalibrator:
    require("calibration", "transformers", "torch", "transformers")
    from tritllm.calibration.calibrator import TextCalibrator

    return TextCalibrator(
        _text(text, option),
        tokens=tokens,
        context=context,
        seed=seed,
        device=_device(device),
    )


def _device(device: str | None) -> str:
    """What is asked for, or a GPU where there is one."""
    if device is not None or importlib.util.find_spec("torch") is None:
        return device or "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _refuse_unused(**options: object) -> None:
    """Raise TritError for an option that says how to calibrate, where nothing is calibrated."""
    for name, value in options.items():
        if value is not None:
            raise TritError(f"--{name} has no effect without --calibrate TEXT; give both")


def _text(calibrate: str | Path, option: str) -> Text:
    """A file's text, or a dataset's; known by the bare name of the file."""
    if os.path.exists(calibrate) or not re.fullmatch(_DATASET, str(calibrate)):
        return replace(read_text(calibrate, option), name=Path(calibrate).name)
    return read_dataset(str(calibrate), split="train")
