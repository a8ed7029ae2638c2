"""The seam between calibration and the training of each block, which stands above it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tritllm.calibration.activations import Activations
from tritllm.calibration.encode import Outcome
from tritllm.calibration.part import Batches, Part
from tritllm.quantizer.configs import Config


@dataclass(frozen=True)
class EncodedPart:
    """A part whose matrices are encoded, and what its output should be.

    part: holds the encoded weights. stream: the config's, before the part. wanted: the float
    stream behind the part. outcomes: of its matrices. weight: the source's, by the name below the
    part's root, float32 [out_features, in_features].
    """

    part: Part
    batches: Batches
    stream: Activations
    wanted: Activations
    outcomes: Sequence[Outcome]
    weight: Callable[[str], torch.Tensor]
    device: torch.device


@dataclass(frozen=True)
class TrainingShare:
    """How far the training of a part is.

    done: of its work, 0..1. where: for people, "step 30 of 100". before, after: the loss of the
    part as calibrated, and the least so far.
    """

    done: float
    where: str
    before: float
    after: float


class PartTrainer(Protocol):
    """Trains a part's matrices before its stream advances."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that its results depend on, in JSON's types; a part of the run's fingerprint."""
        ...

    @property
    def command_options(self) -> Sequence[str]:
        """The words on the command line that give these settings again, besides the text."""
        ...

    def trains(self, config: Config) -> bool:
        """Whether a config's matrices are trained."""
        ...

    def passes(self, batches: Batches) -> float:
        """What training a part costs, in passes of the whole text through the part."""
        ...

    def train(self, encoded: EncodedPart, tell: Callable[[TrainingShare], None]) -> list[Outcome]:
        """The outcomes in the same order; the part is left with the weights they decode to."""
        ...
