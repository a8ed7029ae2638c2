"""The arithmetic that kernels are compared with, against its definition in words."""

import numpy as np
import pytest
from support.weights import random_weights

from tritllm.products import reference


def test_activations_are_within_half_a_step():
    x = np.random.default_rng(0).standard_normal((3, 70)).astype(np.float32)
    a = reference.quantize(x)
    assert a.q.shape == (3, 5, 16)
    assert np.abs(a.q).max() == 127
    back = (a.q * a.scale[..., None]).reshape(3, -1)
    half = np.repeat(a.scale, 16, axis=1) * 0.5000001
    assert (np.abs(back[:, :70] - x) <= half[:, :70]).all()
    assert not back[:, 70:].any()


def test_groups_do_not_disturb_one_another():
    x = np.ones((1, 32), np.float32)
    x[0, 0] = 1e5
    a = reference.quantize(x)
    assert a.q[0, 1].tolist() == [127] * 16
    assert a.scale[0, 1] == np.float32(1) / np.float32(127)


def test_zeros_and_negligible_values_are_zero():
    x = np.zeros((1, 32), np.float32)
    x[0, 3] = 1e-38
    a = reference.quantize(x)
    assert not a.q.any()
    assert not a.scale.any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_becomes_nan_in_its_row(value):
    x = np.ones((2, 40), np.float32)
    x[1, 20] = value
    w = random_weights(1, 5, 40, 2)
    y = reference.quantized(*w.at(2), x)
    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1]).all()


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_quantized_activations_cost_less_than_a_hundredth(depth):
    w = random_weights(depth, 64, 1024, depth)
    x = np.random.default_rng(5).standard_normal((16, 1024)).astype(np.float32)
    exact, quantized = reference.exact(*w.at(depth), x), reference.quantized(*w.at(depth), x)
    assert np.linalg.norm(quantized - exact) < 1e-2 * np.linalg.norm(exact)
