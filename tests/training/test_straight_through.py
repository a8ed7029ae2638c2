"""Latent levels, steps and vectors: forward as the file decodes, backward as defined."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tritllm.codec import encode
from tritllm.format.trits import max_level
from tritllm.training.straight_through import TrainedMatrix, TrainedVector, levels_of

DEPTHS = (1, 2, 3, 4)


def some_weight(rows: int = 6, columns: int = 40) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(rows, columns)).astype(np.float32)


def trained(depth: int, weight: np.ndarray | None = None) -> tuple[TrainedMatrix, np.ndarray]:
    weight = some_weight() if weight is None else weight
    return TrainedMatrix(encode(weight, depth), weight), weight


@pytest.mark.parametrize("depth", DEPTHS)
def test_training_begins_with_the_tensor_it_is_given(depth):
    weight = some_weight()
    start = encode(weight, depth)
    matrix = TrainedMatrix(start, weight)
    read = matrix.read_off(weight)
    assert np.array_equal(read.weight, start.weight)
    assert np.array_equal(read.codebook[depth - 1], start.codebook[depth - 1])
    assert np.array_equal(read.scale, start.scale)
    assert read.error == pytest.approx(start.error, rel=1e-5)
    assert read.energy == pytest.approx(start.energy, rel=1e-5)


@pytest.mark.parametrize("depth", DEPTHS)
def test_what_is_read_off_decodes_to_the_forward_pass_bit_for_bit(depth):
    matrix, weight = trained(depth)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():  # far from the start, steps in no order
        matrix.latent.add_(torch.randn(matrix.latent.shape, generator=random) * 2)
        matrix.log_steps.add_(torch.randn(27, generator=random))
    matrix.limit()
    read = matrix.read_off(weight)
    forward = matrix().detach().numpy()
    assert read.decode().tobytes() == forward.tobytes()
    assert read.error == pytest.approx(float(np.sum((weight - forward.astype(float)) ** 2)))


def test_a_zero_step_stays_zero_and_gives_no_gradient():
    matrix, weight = trained(2, np.zeros((4, 16), np.float32))
    loss = matrix().square().sum() + matrix().sum()
    loss.backward()
    torch.optim.Adam([matrix.latent, matrix.log_steps], lr=0.1).step()
    assert not matrix.latent.isnan().any()
    assert not matrix().detach().any()
    assert not matrix.read_off(weight).decode().any()


@pytest.mark.parametrize("depth", DEPTHS)
def test_gradient_of_the_steps_is_that_of_the_forward_pass(depth):
    matrix, weight = trained(depth)
    factors = torch.from_numpy(np.random.default_rng(1).normal(size=weight.shape))

    def loss(log_steps: torch.Tensor) -> torch.Tensor:
        steps = (matrix.start * log_steps.exp())[matrix.index.long()].repeat_interleave(16, 1)[
            :, :40
        ]
        return (levels_of(matrix.latent, depth) * steps * factors).sum()

    (matrix() * factors).sum().backward()
    log_steps = matrix.log_steps.detach().double()
    for j in set(matrix.index.flatten().tolist()):
        change = torch.zeros(27, dtype=torch.float64)
        change[j] = 1e-5
        difference = (loss(log_steps + change) - loss(log_steps - change)) / 2e-5
        assert matrix.log_steps.grad[j] == pytest.approx(float(difference), rel=1e-4, abs=1e-5)
    unused = [j for j in range(27) if j not in matrix.index]
    assert not matrix.log_steps.grad[unused].any()


def test_gradient_of_a_latent_level_is_as_if_it_were_not_rounded():
    matrix, weight = trained(2)
    factors = torch.from_numpy(np.random.default_rng(1).normal(size=weight.shape)).float()
    (matrix() * factors).sum().backward()
    step = matrix.steps()[matrix.index.long()].repeat_interleave(16, 1)[:, :40]
    torch.testing.assert_close(matrix.latent.grad, factors * step.detach())


@pytest.mark.parametrize("depth", DEPTHS)
def test_latent_levels_start_in_their_cells_and_stay_within_reach(depth):
    matrix, weight = trained(depth)
    levels = encode(weight, depth).levels()
    assert np.abs(matrix.latent.detach().numpy() - levels).max() <= 0.4501
    with torch.no_grad():
        matrix.latent.mul_(1e6)
    matrix.limit()
    assert matrix.latent.abs().max() == max_level(depth) + 0.5
    assert np.abs(matrix.read_off(weight).levels()).max() == max_level(depth)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_vector_counts_as_it_is_stored(dtype):
    value = torch.from_numpy(np.random.default_rng(2).normal(size=50)).float()
    vector = TrainedVector(value, dtype)
    (vector() * 3).sum().backward()
    assert torch.equal(vector().detach(), value.to(dtype).float())
    assert torch.equal(vector.value.grad, torch.full((50,), 3.0))
    assert vector.read_off().dtype == dtype
    assert torch.equal(vector.read_off().float(), vector().detach())
