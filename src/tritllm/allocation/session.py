"""One model in memory from the first sensitivity to the last choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers

from tritllm.allocation.groups import Group
from tritllm.allocation.measure import measure
from tritllm.allocation.measured_model import MeasuredModel, Sample, memory_bytes
from tritllm.allocation.reach import MEASUREMENTS, reach
from tritllm.allocation.sensitivities import Sensitivities
from tritllm.allocation.swaps import EXCHANGES, ONE_TRIT_SHARES, Budget, Chosen, improve
from tritllm.calibration.windows import windows_of
from tritllm.errors import TritError
from tritllm.machine import available_memory
from tritllm.quantizer.encodings import CalibrationProgress
from tritllm.quantizer.plan import Plan
from tritllm.version import __version__

if TYPE_CHECKING:
    from tritllm.allocation.resolve import Measuring

_LEAST_WINDOWS = 2  # one for the sensitivities, one for whole models


class Session:
    """Measures groups alone, then whole models, on different windows of one text.

    fixed: depths of modules that are not chosen: those of whole models that are measured.
    known: sensitivities so far; they are completed.

    Raises TritError for a text of fewer than two windows, too little memory, and what
    `MeasuredModel` raises.
    """

    def __init__(
        self,
        plan: Plan,
        measuring: Measuring,
        groups: Sequence[Group],
        fixed: Mapping[str, int],
        known: Sensitivities,
        on_progress: Callable[[CalibrationProgress], None] | None,
    ) -> None:
        assert measuring.text is not None
        context = known.basis.context
        count = max(measuring.tokens // context, 1)
        _check_memory(memory_bytes(plan, 2 * count * context), plan)
        windows, _ = windows_of(plan.source, measuring.text, None, context, measuring.seed)
        windows = windows[: 2 * count]
        if len(windows) < _LEAST_WINDOWS:
            raise TritError(
                f"{measuring.text.name}: too short: two windows of {context} tokens are needed to "
                "choose depths; give a longer text"
            )
        half = min(count, len(windows) // 2)
        self._windows = windows[:half], windows[half:]
        self._groups, self._known, self._on_progress = groups, known, on_progress
        self._model = MeasuredModel(plan, measuring.threads, measuring.device)
        for module in (module for group in groups for module in group.modules):
            if not self._model.holds(module):
                raise TritError(
                    f"{plan.source.files.name}: what {module} costs cannot be measured: it is no "
                    f"linear layer of {type(self._model.model).__name__}; give it a depth with "
                    f"--depth '{module}=4'"
                )
        self._fixed = {m: depth for m, depth in fixed.items() if self._model.holds(m)}
        self._whole: Sample | None = None
        known.versions = {
            "tritllm": __version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        }

    def measure(self, path: Path | None) -> None:
        """Complete the sensitivities; the file is written after each group."""
        self._whole = self._model.sample(self._windows[1])
        self._whole.outputs = []
        if all(self._known.of(group) is not None for group in self._groups):
            return
        sample = self._model.sample(self._windows[0])

        costs = [1 + self._model.blocks - self._model.first_block([g]) for g in self._groups]

        def on_group(group: Group, done: int) -> None:
            self._say("measuring sensitivities,", group.name, sum(costs[:done]), sum(costs))

        measure(self._model, sample, self._groups, self._known, path, on_group)

    def improve(self, name: str, budget: Budget) -> Chosen:
        """The best depths within a budget. Called after `measure`."""
        on_measured = self._counted(name, len(ONE_TRIT_SHARES) + EXCHANGES)
        chosen = improve(self._model, self._fix(), self._groups, self._kl, budget, on_measured)
        assert chosen is not None  # the target was checked
        return chosen

    def reach(self, name: str, limit: float) -> Chosen | None:
        """The fewest bits within a divergence; None where none are enough. After `measure`."""
        on_measured = self._counted(name, MEASUREMENTS)
        return reach(self._model, self._fix(), self._groups, self._kl, limit, on_measured)

    @property
    def _kl(self) -> dict[str, list[float]]:
        return {group.name: self._known.kl[group.name] for group in self._groups}

    def _fix(self) -> Sample:
        """The windows for whole models, with the modules that are not chosen at their depths."""
        self._model.set_depths(self._fixed)
        assert self._whole is not None
        return self._whole

    def _counted(self, name: str, most: int) -> Callable[[int], None]:
        def on_measured(count: int) -> None:
            self._say(f"choosing depths of {name},", f"measurement {count}", count, most)

        return on_measured

    def _say(self, activity: str, where: str, done: int, total: int) -> None:
        if self._on_progress:
            self._on_progress(CalibrationProgress(activity, where, done, total))


def _check_memory(need: int, plan: Plan) -> None:
    available = available_memory()
    if need > available:
        raise TritError(
            f"{plan.source.files.name}: measuring depths holds the whole model in float32: about "
            f"{need / 1e9:.1f} GB of memory are needed and {available / 1e9:.1f} GB are available; "
            "use --sensitivities FILE measured on a larger machine"
        )
