"""`--qat`: training each block to give what the float model's block gives.

After calibration has encoded a block's matrices, their levels and steps are trained so that the
block's output in the quantized stream comes near the float stream's. Each block sees what the
blocks before it, as trained, really give it, so that errors do not add up unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from tritllm.calibration.encode import Outcome
from tritllm.calibration.part import Batches
from tritllm.calibration.part_trainer import EncodedPart, TrainingShare
from tritllm.errors import TritError
from tritllm.quantizer.configs import Config
from tritllm.training.install import Installed
from tritllm.training.optimise import Rates, TrainingProgress, optimise
from tritllm.training.straight_through import TrainedMatrix

STEPS = 100
RATES = Rates({1: 0.003, 2: 0.001, 3: 0.0005, 4: 0.0002}, log_steps=0.002, vectors=0.0)
WITHOUT_LEVELS = 0.1  # of the steps
HELD_BACK = 8  # one window of so many is never trained on
_STEP = 3.0  # passes forward that a step costs: a pass backward is two products for each one
JUDGED = 10  # steps between two looks at the windows held back, or fewer


@dataclass(frozen=True)
class BlockTrainer:
    """A `PartTrainer`.

    steps: of the optimizer, a block. seed: of the choice of windows. configs: names of those that
    are trained; None trains all.
    """

    steps: int = STEPS
    seed: int = 0
    configs: frozenset[str] | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """As `PartTrainer.settings`."""
        rates = {str(depth): rate for depth, rate in RATES.latent.items()}
        names = None if self.configs is None else sorted(self.configs)
        return {"steps": self.steps, "seed": self.seed, "rates": rates, "configs": names}

    @property
    def command_options(self) -> Sequence[str]:
        """As `PartTrainer.command_options`."""
        return ["--steps", str(self.steps)]

    def trains(self, config: Config) -> bool:
        """As `PartTrainer.trains`."""
        return self.configs is None or config.name in self.configs

    def passes(self, batches: Batches) -> float:
        """As `PartTrainer.passes`: a step is a pass of its windows forward and one backward."""
        looks = self.steps / self._judge_every + 1
        trained = self.steps * min(batches.at_once, batches.windows) * _STEP
        return (trained + looks * _held(batches)) / batches.windows

    @property
    def _judge_every(self) -> int:
        return max(1, min(JUDGED, self.steps // 4))

    def train(self, encoded: EncodedPart, tell: Callable[[TrainingShare], None]) -> list[Outcome]:
        """As `PartTrainer.train`. What was encoded data-free is left as it is.

        Raises TritError where the text gives no window to hold back.
        """
        if self.steps < 1:
            raise TritError(f"--steps {self.steps} trains nothing; give 1 or more")
        windows = encoded.batches.windows
        if windows < 2:
            raise TritError(
                "the text gives one window, and --qat needs one to train on and one to judge by; "
                "give a longer text, more --tokens or a smaller --context"
            )
        places = {matrix.name: name for name, matrix in encoded.part.matrices.items()}
        trained = {
            places[outcome.matrix.name]: outcome
            for outcome in encoded.outcomes
            if outcome.data_free is None
        }
        if not trained:
            return list(encoded.outcomes)
        weights = {name: encoded.weight(name).cpu().numpy() for name in trained}
        matrices = {
            f"{name}.weight": TrainedMatrix(outcome.encoded, weights[name])
            for name, outcome in trained.items()
        }
        turned = {f"{n}.weight" for n, o in trained.items() if o.matrix.transposed}
        installed = Installed(encoded.part.root, matrices, {}, frozenset(turned))
        installed.to(encoded.device)
        loss = _BlockLoss(encoded, _held(encoded.batches), self.seed)
        result = optimise(
            installed,
            RATES,
            loss.add_gradients,
            loss.held_back,
            steps=self.steps,
            steps_without_levels=int(self.steps * WITHOUT_LEVELS),
            judge_every=self._judge_every,
            on_progress=_teller(tell),
        )
        installed.remove()
        about = {
            "steps": self.steps,
            "kept_step": result.best_step,
            "broke_off": result.broke_off,
            "block_before": result.start,
            "block_after": result.best,
        }
        outcomes = []
        for outcome in encoded.outcomes:
            name = places[outcome.matrix.name]
            if name in trained:
                outcome = replace(outcome, trained=about)
                if result.best_step:
                    read = matrices[f"{name}.weight"].read_off(weights[name])
                    outcome = replace(outcome, encoded=read)
            outcomes.append(outcome)
        return outcomes


class _BlockLoss:
    """Squared distance of a block's output from the float one, relative to the latter's square."""

    def __init__(self, encoded: EncodedPart, held: int, seed: int) -> None:
        self._encoded, self._seed = encoded, seed
        self._train = encoded.batches.windows - held  # the last ones are held back
        self._at_once = min(encoded.batches.at_once, encoded.batches.windows)

    def add_gradients(self, step: int) -> float:
        drawn = np.random.default_rng([self._seed, step]).integers(self._train, size=self._at_once)
        distance, energy = self._measured(drawn)
        loss = distance / energy
        loss.backward()
        return loss.item()

    @torch.no_grad()
    def held_back(self) -> float:
        windows = np.arange(self._train, self._encoded.batches.windows)
        whole = len(windows) // self._at_once * self._at_once
        batches = [*windows[:whole].reshape(-1, self._at_once), *windows[whole:, None]]
        parts = [self._measured(batch) for batch in batches]
        return float(sum(d.double() for d, _ in parts) / sum(e.double() for _, e in parts))

    def _measured(self, windows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """As many windows as calibration ran at once, or one: what the calls are recorded for."""
        encoded, batches = self._encoded, self._encoded.batches
        hidden, wanted = (
            torch.cat([batches.hidden(stream, int(i), 1, encoded.device) for i in windows])
            for stream in (encoded.stream, encoded.wanted)
        )
        out = encoded.part.call(0, hidden)
        return (out - wanted).square().sum(), wanted.square().sum()


def _held(batches: Batches) -> int:
    """How many windows are held back."""
    return max(1, batches.windows // HELD_BACK)


def _teller(tell: Callable[[TrainingShare], None]) -> Callable[[TrainingProgress], None]:
    def report(step: TrainingProgress) -> None:
        where = f"step {step.step} of {step.steps}"
        tell(TrainingShare(step.step / step.steps, where, step.start, step.best))

    return report
