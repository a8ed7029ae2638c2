"""Matrices that are ternary already: recognised by their weights, and kept."""

from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest

import tritllm
from tritllm.codec import TritTensor
from tritllm.codec.ternary import encode_ternary, fitted_entries, scales_of

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
RNG = np.random.default_rng(0)
TRITS = RNG.integers(-1, 2, (40, 83)).astype(np.float32)


def encoded(weight):
    e = encode_ternary(weight)
    return TritTensor(e.weight, e.scale, e.codebook, weight.shape[1], e.error, e.energy)


def scaled(scale, dtype, trits=TRITS):
    """Trits times scales [N] or one a group of 16 [N, G]."""
    by_group = np.broadcast_to(np.asarray(scale, np.float32).reshape(len(scale), -1), (40, 6))
    return (trits * np.repeat(by_group, 16, axis=1)[:, :83]).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("codec", ["v2", "v3"])
def test_one_scale_gives_the_bits_of_the_other_codecs(dtype, codec):
    weight = scaled([0.0137] * 40, dtype)
    q, other = encoded(weight), tritllm.encode(weight, 1, codec)
    for mine, theirs in zip(
        (q.weight, q.scale, q.codebook), (other.weight, other.scale, other.codebook), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)
    assert q.error == other.error == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("magnitudes", [1, 2, 26, 27])
def test_up_to_27_magnitudes_are_kept_to_the_bit(dtype, magnitudes):
    scales = (0.01 * 1.07 ** np.arange(magnitudes)).astype(dtype)
    weight = scaled(scales[RNG.integers(0, magnitudes, (40, 6))], dtype)
    q = encoded(weight)
    np.testing.assert_array_equal(q.decode(dtype=dtype), weight)
    np.testing.assert_array_equal(q.levels(), TRITS)
    assert (q.error, q.sqnr_db) == (0, np.inf)
    q.check_bytes()


def test_the_smallest_and_largest_floats_are_kept():
    scales = np.float32([1e-45, 1e-38, 1, 3.4e38])
    weight = scaled(scales[RNG.integers(0, 4, (40, 6))], np.float32)
    np.testing.assert_array_equal(encoded(weight).decode(), weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_magnitudes_are_fitted_and_trits_stay(dtype):
    scales = RNG.uniform(0.001, 0.03, (40, 6)).astype(dtype)
    weight = scaled(scales, dtype)
    assert scales_of(weight).distinct.size > 27
    q, v3 = encoded(weight), tritllm.encode(weight, 1)
    np.testing.assert_array_equal(q.levels(), TRITS)
    wide = weight.astype(np.float64)
    np.testing.assert_allclose(q.error, ((wide - q.decode()) ** 2).sum(), rtol=1e-5)
    np.testing.assert_allclose(q.energy, (wide**2).sum(), rtol=1e-5)
    assert q.sqnr_db > v3.sqnr_db + 1


def test_the_fit_is_the_best_partition():
    """Against all cuts of few values into three parts."""
    values = np.sort(RNG.uniform(0, 1, 12).astype(np.float32))
    weights = RNG.integers(1, 9, 12)

    def loss(parts):
        return sum(
            (w * (x.astype(np.float64) - np.average(x, weights=w)) ** 2).sum()
            for x, w in ((values[a:b], weights[a:b]) for a, b in pairwise(parts))
        )

    best = min(loss((0, a, b, 12)) for a in range(1, 11) for b in range(a + 1, 12))
    entries = fitted_entries(values, weights, 3)
    nearest = np.abs(values[:, None] - entries.astype(np.float64)).min(axis=1)
    np.testing.assert_allclose((weights * nearest**2).sum(), best, rtol=1e-5)


def test_many_values_are_fitted_in_runs():
    values = np.sort(RNG.lognormal(0, 0.5, 5000).astype(np.float32))
    weights = np.ones(5000, np.int64)
    fit = fitted_entries(values, weights, 27)
    assert (np.diff(fit) > 0).all()
    missed = np.abs(values[:, None] - fit).min(axis=1)
    quantiles = np.quantile(values, (np.arange(27) + 0.5) / 27)
    assert (missed**2).sum() < 0.5 * (np.abs(values[:, None] - quantiles).min(axis=1) ** 2).sum()


@pytest.mark.parametrize(
    "weight",
    [
        RNG.normal(size=(33, 50)),
        RNG.normal(size=(50, 1)),  # a magnitude each: ternary by chance alone
        np.where(np.eye(40, 83) > 0, 0.5, TRITS),
        np.where(np.eye(40, 83) > 0, np.nan, TRITS),
        np.where(TRITS > 0, np.inf, 0),
        np.zeros((3, 20)),
    ],
)
def test_what_is_not_ternary(weight):
    if weight.any():
        assert encode_ternary(weight.astype(np.float32)) is None
    else:  # or is, to the same bits
        q, v3 = encoded(weight.astype(np.float32)), tritllm.encode(weight.astype(np.float32), 1)
        np.testing.assert_array_equal(q.codebook, v3.codebook)


def test_layouts_and_negative_zeros():
    weight = scaled([0.5] * 40, np.float32)
    wanted = encoded(weight)
    for same in (np.asfortranarray(weight), np.where(weight == 0, np.float32(-0.0), weight)):
        np.testing.assert_array_equal(encoded(same).weight, wanted.weight)
        np.testing.assert_array_equal(encoded(same).scale, wanted.scale)
