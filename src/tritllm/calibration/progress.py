"""How far a calibration is, in weights passed: every pass costs about what its weights do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from tritllm.calibration.encode import Outcome
from tritllm.calibration.part import Batches
from tritllm.calibration.part_trainer import PartTrainer, TrainingShare
from tritllm.quantizer.configs import Config
from tritllm.quantizer.encodings import CalibrationProgress
from tritllm.quantizer.matrices import SourceMatrix

# What a weight costs in a product of the whole text, in units of the float stream's pass.
_FLOAT, _ENCODE, _ADVANCE = 1.0, 3.0, 1.0


class Meter:
    """Reports to a caller.

    parts: the matrices of each part. blocks: how many of them, the first ones, are blocks: these
    are trained where there is a `trainer`. done: parts behind us.
    """

    def __init__(
        self,
        parts: Sequence[Mapping[str, SourceMatrix]],
        blocks: int,
        done: int,
        configs: Sequence[Config],
        batches: Batches,
        trainer: PartTrainer | None,
        report: Callable[[CalibrationProgress], None] | None,
    ) -> None:
        passes = trainer.passes(batches) if trainer else 0.0
        trainings = sum(trainer.trains(config) for config in configs) if trainer else 0
        sizes = [_weights(part.values()) for part in parts]
        self._training = [passes * size for size in sizes[:blocks]]
        one = _FLOAT + len(configs) * (_ENCODE + _ADVANCE)
        costs = [one * size for size in sizes]
        for number, training in enumerate(self._training):
            costs[number] += trainings * training
        self._total = sum(costs)
        self._done = sum(costs[:done])
        self._report = report

    def at(self, where: str) -> None:
        """Something begins."""
        self._tell(where)

    def float_passed(self, matrices: Iterable[SourceMatrix]) -> None:
        """The float stream has passed a part."""
        self._done += _FLOAT * _weights(matrices)

    def encoded(self, where: str, config: str, outcome: Outcome) -> None:
        """A matrix is encoded."""
        self._done += _ENCODE * outcome.matrix.size
        if outcome.loss_before is None or outcome.loss_after is None:
            self._tell(f"{where}, data-free")
        else:
            self._tell(where, {config: outcome.loss_before}, {config: outcome.loss_after})

    def training(self, number: int, where: str, config: str, share: TrainingShare) -> None:
        """A block, by its number, is in training."""
        cost = self._training[number] * share.done
        losses = {config: share.before}, {config: share.after}
        self._tell(f"{where}, training, {share.where}", *losses, cost, "output error")

    def trained(self, number: int) -> None:
        """A block's training under a config has ended."""
        self._done += self._training[number]

    def advanced(self, matrices: Iterable[SourceMatrix]) -> None:
        """A quantized stream has passed a part."""
        self._done += _ADVANCE * _weights(matrices)

    def _tell(
        self,
        where: str,
        before: Mapping[str, float] | None = None,
        after: Mapping[str, float] | None = None,
        beyond: float = 0.0,
        measure: str = "loss",
    ) -> None:
        if self._report:
            done = self._done + beyond
            losses = before or {}, after or {}
            self._report(
                CalibrationProgress("calibrating", where, done, self._total, *losses, measure)
            )


def _weights(matrices: Iterable[SourceMatrix]) -> int:
    return sum(matrix.size for matrix in matrices)
