"""What `--qat`, `--tune`, `--steps` and configs named `qat-d2` ask for, put around a calibrator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tritllm.errors import TritError
from tritllm.quantizer.configs import Config, is_block_trained

if TYPE_CHECKING:
    from tritllm.calibration.calibrator import TextCalibrator
    from tritllm.quantizer.encodings import Calibrator


def text_of(
    calibrate: str | Path | None,
    qat: str | Path | None,
    configs: Sequence[str | Config],
    tune: bool,
    steps: int | None,
) -> str | Path | None:
    """The text to calibrate and train on; None where nothing asks for one.

    Raises TritError where a text is missing, or two are given, or options contradict each other.
    """
    text = calibrate if qat is None else qat
    if calibrate is not None and qat is not None and os.fspath(calibrate) != os.fspath(qat):
        raise TritError(
            "--calibrate and --qat name different texts; blocks are trained on the text that they "
            "are calibrated on: give --qat alone"
        )
    trained = [name for name in _names(configs) if is_block_trained(name)]
    if text is None and trained:
        raise TritError(f"config {trained[0]} is trained on a text; give --qat TEXT")
    if text is None and tune:
        raise TritError("--tune trains on a text; give --calibrate TEXT")
    if not (qat or trained or tune) and steps is not None:
        raise TritError("--steps has no effect without --qat TEXT or --tune; give one")
    if (qat or trained or tune) and any(isinstance(c, Config) and c.nested for c in configs):
        raise TritError("--nested is not trained: training serves one depth; leave one of them out")
    return text


def with_training(
    calibrator: TextCalibrator,
    configs: Sequence[str | Config],
    qat: bool,
    tune: bool,
    steps: int | None,
) -> Calibrator:
    """A calibrator that also trains: what `text_of` has checked.

    qat: whether every config is trained block by block; those that are named so are in any case,
    and alone where there are some.
    """
    named = frozenset(name for name in _names(configs) if is_block_trained(name))
    if not (qat or named or tune):
        return calibrator
    from tritllm.training import block_training
    from tritllm.training.tune import STEPS, Tuner

    if qat or named:
        trainer = block_training.BlockTrainer(
            block_training.STEPS if steps is None else steps, calibrator.seed, named or None
        )
        calibrator = replace(calibrator, trainer=trainer)
    if not tune:
        return calibrator
    return Tuner(
        calibrator,
        calibrator.text,
        steps=STEPS if steps is None else steps,
        context=calibrator.context,
        seed=calibrator.seed,
        device=calibrator.device,
    )


def _names(configs: Sequence[str | Config]) -> list[str]:
    return [config if isinstance(config, str) else config.name for config in configs]
