"""Calibrating a plan on a text: a `Calibrator` that streams the model through memory.

A block at a time is filled from the source. The float model's stream passes it once; each config's
stream passes it stage by stage, and leaves encodings. What is durable at the end of a block: its
encodings and all streams behind it. There a run goes on after an interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tritllm.calibration.run import BATCH_TOKENS, METHOD, Run
from tritllm.calibration.state import RunSettings
from tritllm.calibration.windows import TOKENS
from tritllm.quantizer.encodings import CalibrationProgress, Encodings
from tritllm.quantizer.plan import Plan

_ARRAYS_BESIDE = 6  # as wide as a stream: what steps are compared with, outputs that are kept


@dataclass(frozen=True)
class TextCalibrator(RunSettings):
    """Calibrates on a text: a `Calibrator`."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """As `Calibrator.settings`."""
        return {
            "method": METHOD,
            "text": {"name": self.text.name, "sha256": self.text.sha256},
            "tokens": self.tokens,
            "context": self.context,
            "seed": self.seed,
            "device": self.device,
            **({"qat": dict(self.trainer.settings)} if self.trainer else {}),
        }

    @property
    def command_options(self) -> Sequence[str]:
        """As `Calibrator.command_options`."""
        options = ["--qat" if self.trainer else "--calibrate", self.text.name]
        if self.trainer:
            options += self.trainer.command_options
        if self.tokens is not None:
            options += ["--tokens", str(self.tokens)]
        if self.context is not None:
            options += ["--context", str(self.context)]
        if self.seed:
            options += ["--seed", str(self.seed)]
        return [*options, "--device", self.device]

    def memory_bytes(self, plan: Plan) -> int:
        """As `Calibrator.memory_bytes`."""
        largest = max(matrix.shape[1] for matrix in plan.quantized)
        widest = max(matrix.size for matrix in plan.quantized)
        block = 4 * sum(m.size for m in plan.quantized) // _blocks_guess(plan)
        kept = [t.entry.size for t in plan.all_tensors if not t.decision.quantize]
        if self.trainer:
            block *= 6  # latent levels, gradients, two moments, weights, levels
        working = block + 32 * largest**2 + 24 * widest + 16 * BATCH_TOKENS * largest
        streams = self._row_bytes(plan) * (2 * (1 + len(plan.configs)) + _ARRAYS_BESIDE)
        return max(working, 4 * max(kept, default=0)) + min(self.in_memory, streams)

    def disk_bytes(self, plan: Plan) -> int:
        """As `Calibrator.disk_bytes`."""
        streams = self._row_bytes(plan) * (4 * (1 + len(plan.configs)) + _ARRAYS_BESIDE)
        return streams + sum(plan.output_bytes(config, "packed") for config in plan.configs)

    def _row_bytes(self, plan: Plan) -> int:
        """Bytes of one stream, at most: a token has a byte of text or more."""
        tokens = min(self.tokens or TOKENS, len(self.text.content.encode()))
        return 4 * tokens * max(min(matrix.shape) for matrix in plan.quantized)

    def run(
        self,
        plan: Plan,
        folder: Path,
        threads: int,
        on_progress: Callable[[CalibrationProgress], None] | None,
    ) -> Encodings:
        """As `Calibrator.run`."""
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return Run(self, plan, folder, threads, on_progress).encodings()
        finally:
            torch.set_num_threads(before)


def _blocks_guess(plan: Plan) -> int:
    """How many blocks a model has, by its configuration; 1 where that does not say."""
    config = plan.source.config
    text_config = config.get("text_config")
    nested = text_config if isinstance(text_config, dict) else {}
    return (
        config.get("num_hidden_layers")
        or nested.get("num_hidden_layers")
        or config.get("n_layer", 1)
    )
