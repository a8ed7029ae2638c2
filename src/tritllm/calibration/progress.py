"""How far a calibration is, in weights passed: every pass costs about what its weights do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from tritllm.calibration.encode import Outcome
from tritllm.quantizer.decisions import PlannedTensor
from tritllm.quantizer.encodings import CalibrationProgress

# What a weight costs in a product of the whole text, in units of the float stream's pass.
_FLOAT, _ENCODE, _ADVANCE = 1.0, 3.0, 1.0


class Meter:
    """Reports to a caller.

    parts: the matrices of each part. done: parts behind us. configs: how many.
    """

    def __init__(
        self,
        parts: Sequence[Mapping[str, PlannedTensor]],
        done: int,
        configs: int,
        report: Callable[[CalibrationProgress], None] | None,
    ) -> None:
        one = _FLOAT + configs * (_ENCODE + _ADVANCE)
        self._total = one * sum(_weights(part.values()) for part in parts)
        self._done = one * sum(_weights(part.values()) for part in parts[:done])
        self._report = report

    def at(self, where: str) -> None:
        """Something begins."""
        self._tell(where)

    def float_passed(self, tensors: Iterable[PlannedTensor]) -> None:
        """The float stream has passed a part."""
        self._done += _FLOAT * _weights(tensors)

    def encoded(self, where: str, config: str, outcome: Outcome) -> None:
        """A matrix is encoded."""
        self._done += _ENCODE * outcome.tensor.entry.size
        if outcome.loss_before is None or outcome.loss_after is None:
            self._tell(f"{where}, data-free")
        else:
            self._tell(where, {config: outcome.loss_before}, {config: outcome.loss_after})

    def advanced(self, tensors: Iterable[PlannedTensor]) -> None:
        """A quantized stream has passed a part."""
        self._done += _ADVANCE * _weights(tensors)

    def _tell(
        self,
        where: str,
        before: Mapping[str, float] | None = None,
        after: Mapping[str, float] | None = None,
    ) -> None:
        if self._report:
            self._report(
                CalibrationProgress(
                    "calibrating", where, self._done, self._total, before or {}, after or {}
                )
            )


def _weights(tensors: Iterable[PlannedTensor]) -> int:
    return sum(tensor.entry.size for tensor in tensors)
