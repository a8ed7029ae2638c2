"""The loop of training: what is kept, what breaks it off, and going on after an interruption."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tritllm.codec import encode
from tritllm.errors import OutputError
from tritllm.training.optimise import Outcome, Rates, factor, optimise
from tritllm.training.straight_through import TrainedMatrix, TrainedVector

RATES = Rates(latent={1: 0.05, 2: 0.05}, log_steps=0.01, vectors=0.01)


class Problem:
    """A matrix and a vector that are to give the same products as their originals."""

    def __init__(self, depth: int = 1) -> None:
        random = np.random.default_rng(0)
        self.weight = random.normal(size=(12, 32)).astype(np.float32)
        self.matrix = TrainedMatrix(encode(self.weight, depth), self.weight)
        self.vector = TrainedVector(torch.ones(12), torch.float16)
        self.trained = nn.ModuleList([self.matrix, self.vector])
        correlated = random.normal(size=(32, 32)) @ np.diag(np.geomspace(1, 0.05, 32))
        self.root = torch.from_numpy(correlated @ random.normal(size=(32, 32))).float()
        self.seen: list[float] = []

    def error(self) -> torch.Tensor:
        wanted = torch.from_numpy(self.weight)
        return ((self.matrix() * self.vector()[:, None] - wanted) @ self.root).square().mean()

    def loss(self, step: int) -> float:
        error = self.error()
        error.backward()
        return error.item()

    @torch.no_grad()
    def held_back(self) -> float:
        self.seen.append(self.error().item())
        return self.seen[-1]

    def train(self, **options) -> Outcome:
        options = {"steps": 40, "steps_without_levels": 8, "judge_every": 5, **options}
        return optimise(self.trained, RATES, self.loss, self.held_back, **options)

    def bytes(self) -> bytes:
        read = self.matrix.read_off(self.weight)
        parts = read.weight, read.scale, read.codebook, self.vector.read_off().numpy()
        return b"".join(part.tobytes() for part in parts)


@pytest.mark.parametrize("depth", [1, 2])
def test_training_lowers_the_loss_and_keeps_the_best_state_judged(depth):
    problem = Problem(depth)
    outcome = problem.train()
    assert outcome.start == problem.seen[0]
    assert outcome.best == min(problem.seen)
    assert outcome.best < 0.9 * outcome.start
    assert problem.held_back() == outcome.best  # what is left is what was judged
    assert outcome.broke_off is None


def test_a_training_that_makes_it_worse_leaves_the_start():
    problem = Problem()
    before = problem.bytes()
    outcome = optimise(
        problem.trained, Rates({1: 50.0}, 5.0, 5.0), problem.loss, problem.held_back,
        steps=6, steps_without_levels=0, judge_every=2,
    )  # fmt: skip
    assert min(problem.seen[1:]) > outcome.start
    assert (outcome.best, outcome.best_step) == (outcome.start, 0)
    assert problem.bytes() == before


def test_steps_without_levels_leave_the_levels():
    problem = Problem()
    levels = encode(problem.weight, 1).levels()
    steps = problem.matrix.log_steps.detach().clone()
    problem.train(steps=10, steps_without_levels=10)
    assert np.array_equal(problem.matrix.read_off(problem.weight).levels(), levels)
    assert not torch.equal(problem.matrix.log_steps, steps)


def test_no_steps_leave_everything():
    problem = Problem()
    before = problem.bytes()
    assert problem.train(steps=0).best_step == 0
    assert problem.bytes() == before


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_it_with_the_best_state(bad):
    problem, undisturbed = Problem(), Problem()
    loss = problem.loss
    problem.loss = lambda step: bad if step == 23 else loss(step)
    outcome = problem.train()
    assert outcome.broke_off == 24
    assert 0 < outcome.best_step <= 23
    undisturbed.train()
    assert problem.seen == undisturbed.seen[: len(problem.seen)]
    assert problem.held_back() == outcome.best


@pytest.mark.parametrize("stop", [3, 17, 39])
def test_an_interrupted_training_goes_on_to_the_same_bytes(stop, tmp_path: Path):
    whole = Problem()
    expected = whole.train()
    state = tmp_path / "state"
    options = {"state": state, "fingerprint": {"seed": 1}, "save_seconds": 0.0}

    class KilledError(Exception):
        pass

    def kill(progress):
        if progress.step == stop:
            raise KilledError

    with pytest.raises(KilledError):
        Problem().train(on_progress=kill, **options)
    resumed = Problem()
    begun_at = []
    loss = resumed.loss
    resumed.loss = lambda step: begun_at.append(step) or loss(step)
    assert resumed.train(**options) == expected
    assert 0 < begun_at[0] < stop  # a step is written while the one after it may be under way
    assert resumed.bytes() == whole.bytes()


def test_another_training_s_state_or_a_damaged_one_is_refused(tmp_path: Path):
    state = tmp_path / "state"
    Problem().train(state=state, fingerprint={"seed": 1}, save_seconds=0.0)
    with pytest.raises(OutputError, match="with other settings was interrupted here"):
        Problem().train(state=state, fingerprint={"seed": 2})
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(OutputError, match="damaged; delete it"):
        Problem().train(state=state, fingerprint={"seed": 1})


def test_progress_tells_losses_and_the_time_left():
    problem, shown = Problem(), []
    problem.train(on_progress=shown.append)
    assert [p.step for p in shown] == list(range(1, 41))
    assert all(p.steps == 40 and p.seconds_left >= 0 for p in shown)
    assert shown[-1].seconds_left == 0
    assert shown[4].held_back == problem.seen[1]
    assert shown[-1].best == min(problem.seen)


def test_the_rate_warms_up_and_falls_towards_nothing():
    rates = [factor(step, 200) for step in range(200)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[-1] < 1e-3
    assert factor(0, 1) == 1
