"""The calibrated encoder: never worse than data-free, on every kind of matrix and Hessian."""

from itertools import pairwise

import numpy as np
import pytest

from tritllm.codec import TritTensor
from tritllm.codec.calibrated import Curvature, encode_calibrated, encode_nested

DEPTHS = (1, 2, 3, 4)


def inputs(tokens: int, columns: int, seed: int = 0) -> np.ndarray:
    """Correlated inputs [tokens, columns] that do not average to 0."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(tokens, columns)) @ random.normal(size=(columns, columns))
    return mixed / np.sqrt(columns) + 0.5 * random.normal(size=columns)


def matrix(rows: int, columns: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def tensor(encoded, columns: int) -> TritTensor:
    return TritTensor(encoded.weight, encoded.scale, encoded.codebook, columns)


def output_error(weight: np.ndarray, decoded: np.ndarray, x: np.ndarray) -> float:
    return float(np.square((weight - decoded) @ x.T).sum() / np.square(weight @ x.T).sum())


@pytest.mark.parametrize("depth", DEPTHS)
def test_output_is_closer_than_without_calibration(depth):
    x, weight = inputs(400, 80), matrix(32, 80)
    result = encode_calibrated(weight, Curvature.of(x.T @ x, len(x)), None, depth)
    assert result.loss_after < 0.8 * result.loss_before
    found = output_error(weight, tensor(result.encoded, 80).decode(), x)
    assert found == pytest.approx(result.loss_after, rel=0.3)  # which counts the damping too


@pytest.mark.parametrize("depths", [(2, 4), (2, 3), (1, 2), (1, 2, 4)])
def test_upper_planes_of_a_nested_matrix_are_the_shallow_encoding(depths):
    x, weight = inputs(400, 72), matrix(20, 72)
    curvature = Curvature.of(x.T @ x, len(x))
    shallow = encode_calibrated(weight, curvature, None, depths[0]).encoded
    nested = encode_nested(weight, curvature, None, depths)
    np.testing.assert_array_equal(nested.encoded.weight[: depths[0]], shallow.weight)
    np.testing.assert_array_equal(nested.encoded.scale, shallow.scale)
    np.testing.assert_array_equal(nested.encoded.codebook[depths[0] - 1], shallow.codebook[-1])
    errors = [output_error(weight, tensor(nested.encoded, 72).decode(depth), x) for depth in depths]
    assert all(deep < upper / 2 for upper, deep in pairwise(errors))
