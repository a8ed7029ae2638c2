"""The loop of all training: Adam, judged by a held-back loss, stopped and resumed at any step."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tritllm.errors import OutputError
from tritllm.storage.output_errors import output_errors
from tritllm.storage.shard_writer import write_atomically
from tritllm.training.straight_through import TrainedMatrix, levels_of

BETAS = (0.9, 0.98)
WARM_UP = 10  # steps
SAVE_SECONDS = 60.0  # between two durable states; more where writing one takes long


@dataclass(frozen=True)
class Rates:
    """Peak learning rates of Adam, about the distance that a number moves a step.

    latent: by depth, in root mean squares of a matrix's weights; log_steps: natural logarithm;
    vectors: of norms and biases, in their root mean square.
    """

    latent: Mapping[int, float]
    log_steps: float
    vectors: float


@dataclass(frozen=True)
class TrainingProgress:
    """Of one training: the loss of the last step, and what the held-back windows say.

    start, held_back, best: the held-back loss at the start, when last judged, and the least so far.
    """

    step: int
    steps: int
    loss: float
    start: float
    held_back: float
    best: float
    seconds_left: float


@dataclass(frozen=True)
class Outcome:
    """What a training came to: held-back losses, the step kept, and where it broke off, if so.

    best_step: steps done when the state that was kept was judged; 0 is the start.
    broke_off: the step whose loss was not finite, or None.
    """

    start: float
    best: float
    best_step: int
    steps: int
    broke_off: int | None


def factor(step: int, steps: int) -> float:
    """Of the peak learning rate at a step, from 0: linear warm-up, then a cosine towards 0."""
    warm_up = min(WARM_UP, max(1, steps // 4))
    if step < warm_up:
        return (step + 1) / warm_up
    return (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))) / 2


def optimise(
    trained: nn.Module,
    rates: Rates,
    loss: Callable[[int], float],
    held_back: Callable[[], float],
    *,
    steps: int,
    steps_without_levels: int,
    judge_every: int,
    state: Path | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    save_seconds: float = SAVE_SECONDS,
    on_progress: Callable[[TrainingProgress], None] | None = None,
) -> Outcome:
    """Train in place; at the end `trained` is the best state judged, maybe the start itself.

    Args:
        trained: holds the `TrainedMatrix` and `TrainedVector` modules in training.
        rates: peak learning rates.
        loss: called with a step's number, adds the gradients and returns the step's loss.
        held_back: the loss to judge by; called between steps, and must leave no gradients.
        steps: of the optimizer; 0 leaves everything as it is.
        steps_without_levels: the first so many move only codebooks, norms and biases.
        judge_every: steps between two looks at the held-back loss; one more at the end.
        state: file that makes the training resumable; removed by the caller.
        fingerprint: JSON object stored in it; a file with another one is refused.
        save_seconds: least time between two writings of that file.
        on_progress: called after each step.

    Raises OutputError where the file cannot be written, is damaged, or belongs to other settings.
    """
    return _Training(trained, rates, steps, steps_without_levels, dict(fingerprint or {})).run(
        loss, held_back, judge_every, state, save_seconds, on_progress
    )


class _Training:
    def __init__(
        self,
        trained: nn.Module,
        rates: Rates,
        steps: int,
        steps_without_levels: int,
        fingerprint: dict[str, Any],
    ) -> None:
        self.trained = trained
        self.steps = steps
        self.steps_without_levels = min(steps_without_levels, steps)
        self.fingerprint = fingerprint
        self.optimizer = torch.optim.Adam(_groups(trained, rates), lr=0.0, betas=BETAS)
        self.step = 0
        self.start = self.best = math.nan
        self.best_step = 0
        self.kept: dict[str, torch.Tensor] = {}
        self.broke_off: int | None = None

    def run(
        self,
        loss: Callable[[int], float],
        held_back: Callable[[], float],
        judge_every: int,
        state: Path | None,
        save_seconds: float,
        on_progress: Callable[[TrainingProgress], None] | None,
    ) -> Outcome:
        if state is None or not self._resume(state):
            self.start = self.best = held_back()
            self._keep()
        judged = self.best
        began, saved, first = time.monotonic(), time.monotonic(), self.step
        while self.step < self.steps and self.broke_off is None:
            value = self._advance(loss)
            if math.isfinite(value) and (
                self.step % judge_every == 0 or self.step in (self.steps, self.steps_without_levels)
            ):
                judged = held_back()
                if judged < self.best:
                    self.best, self.best_step = judged, self.step
                    self._keep()
            now = time.monotonic()
            if on_progress:
                left = (now - began) / max(1, self.step - first) * (self.steps - self.step)
                held = self.start, judged, self.best
                on_progress(TrainingProgress(self.step, self.steps, value, *held, left))
            if state is not None and now - saved >= save_seconds:
                self._save(state)
                saved = time.monotonic()
                save_seconds = max(save_seconds, 20 * (saved - now))
        self._restore()
        return Outcome(self.start, self.best, self.best_step, self.steps, self.broke_off)

    def _advance(self, loss: Callable[[int], float]) -> float:
        """One step of the optimizer, unless the loss is not finite: then the training ends."""
        levels_move = self.step >= self.steps_without_levels
        for group in self.optimizer.param_groups:
            if group["what"] == "latent":
                group["params"][0].requires_grad_(levels_move)
                done, all_steps = self.steps_without_levels, self.steps
                part = factor(self.step - done, all_steps - done) if levels_move else 0.0
            else:
                part = factor(self.step, self.steps)
            group["lr"] = group["peak"] * part
        self.optimizer.zero_grad(set_to_none=True)
        value = loss(self.step)
        if not math.isfinite(value):
            self.broke_off = self.step + 1
            return value
        self.optimizer.step()
        for module in self.trained.modules():
            if isinstance(module, TrainedMatrix):
                module.limit()
        self.step += 1
        return value

    @torch.no_grad()
    def _keep(self) -> None:
        """Remember what would be read off now: levels take a byte a weight."""
        self.kept = {name: p.detach().cpu().clone() for name, p in self._small()}
        for name, matrix in self._matrices():
            self.kept[f"{name}.latent"] = levels_of(matrix.latent, matrix.depth).cpu()

    @torch.no_grad()
    def _restore(self) -> None:
        for name, parameter in self.trained.named_parameters():
            parameter.copy_(self.kept[name])

    def _matrices(self) -> list[tuple[str, TrainedMatrix]]:
        return [(n, m) for n, m in self.trained.named_modules() if isinstance(m, TrainedMatrix)]

    def _small(self) -> list[tuple[str, nn.Parameter]]:
        latent = {f"{name}.latent" for name, _ in self._matrices()}
        return [(n, p) for n, p in self.trained.named_parameters() if n not in latent]

    # --- The durable state ----------------------------------------------------------------------

    def _save(self, path: Path) -> None:
        buffer = io.BytesIO()
        torch.save(
            {
                "fingerprint": self.fingerprint,
                "numbers": [self.step, self.start, self.best, self.best_step],
                "trained": self.trained.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "kept": self.kept,
            },
            buffer,
        )
        with output_errors(path):
            write_atomically(path, buffer.getbuffer())

    def _resume(self, path: Path) -> bool:
        """Go on from a file, if there is one."""
        if not path.exists():
            return False
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            if saved["fingerprint"] == self.fingerprint:
                self.trained.load_state_dict(saved["trained"])
                self.optimizer.load_state_dict(saved["optimizer"])
                self.step, self.start, self.best, self.best_step = saved["numbers"]
                self.kept = saved["kept"]
                return True
        except Exception:  # torch.load names no types for what a damaged file can raise
            raise OutputError(f"{path}: damaged; delete it to train from the start") from None
        raise OutputError(
            f"{path}: a training with other settings was interrupted here; finish it as it was "
            "begun, or delete the file to train from the start"
        )


def _groups(trained: nn.Module, rates: Rates) -> list[dict[str, Any]]:
    """A group of Adam for each parameter, with its peak rate in the parameter's own units."""
    groups = []
    for module in trained.modules():
        if isinstance(module, TrainedMatrix):
            with torch.no_grad():
                weights = module()
                steps = module.steps()[module.index.long()]
                root = weights.square().mean().sqrt() / steps.mean().clamp_min(1e-30)
            groups.append(
                {
                    "params": [module.latent],
                    "what": "latent",
                    "peak": rates.latent[module.depth] * float(root),
                }
            )
            groups.append({"params": [module.log_steps], "what": "steps", "peak": rates.log_steps})
        else:
            for parameter in module.parameters(recurse=False):
                root = parameter.detach().square().mean().sqrt().clamp_min(1e-3)
                groups.append(
                    {"params": [parameter], "what": "vector", "peak": rates.vectors * float(root)}
                )
    return groups
