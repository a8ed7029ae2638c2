"""What the codec must reach: v3 never worse than v2, and the measured table of docs/codec.md."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tritllm
from tritllm.codec import to_decibel

DEPTHS = (1, 2, 3, 4)


def gaussian(rows=256, columns=1024, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def sparse(rng, shape):
    w = rng.standard_normal(shape)
    w[rng.random(shape) < 0.95] = 0
    return w


def outliers(rng, shape):
    w = rng.standard_normal(shape)
    w[rng.random(shape) < 0.001] *= 300
    return w


def uneven_rows(rng, shape):
    return rng.standard_normal(shape) * np.exp(2 * rng.standard_normal((shape[0], 1)))


KINDS = {
    "gaussian": lambda rng, shape: rng.standard_normal(shape),
    "student_t2": lambda rng, shape: rng.standard_t(2, shape),
    "cauchy": lambda rng, shape: rng.standard_cauchy(shape),
    "uniform": lambda rng, shape: rng.uniform(-1, 1, shape),
    "sparse": sparse,
    "few_values": lambda rng, shape: rng.integers(-3, 4, shape) / 2.0,
    "signs": lambda rng, shape: rng.choice([-0.02, 0.02], shape),
    "one_of_16": lambda rng, shape: rng.standard_normal(shape) * (np.arange(shape[1]) % 16 == 3),
    "outliers": outliers,
    "uneven_rows": uneven_rows,
}


def assert_not_worse(weight):
    v2, v3 = (tritllm.encode_depths(weight, DEPTHS, codec) for codec in ("v2", "v3"))
    for depth in DEPTHS:
        assert v3[depth].error <= v2[depth].error
        assert v3[depth].nbytes == v2[depth].nbytes


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (5, 37), (40, 333), (64, 1024)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_v3_is_not_worse_than_v2(kind, shape, dtype):
    weight = KINDS[kind](np.random.default_rng(11), shape)
    assert_not_worse(np.clip(weight, -6e4, 6e4).astype(dtype))


@pytest.mark.parametrize("exponent", [-148, -140, -126, -60, 60, 120])
@pytest.mark.parametrize("kind", ["gaussian", "sparse", "uneven_rows"])
def test_v3_is_not_worse_than_v2_at_any_scale(kind, exponent):
    weight = KINDS[kind](np.random.default_rng(12), (20, 100))
    assert_not_worse(np.ldexp(weight / np.abs(weight).max(), exponent).astype(np.float32))


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=48), st.integers(1, 3), st.data()
)
def test_v3_is_not_worse_than_v2_on_small_matrices(values, rows, data):
    weight = np.array([data.draw(st.permutations(values)) for _ in range(rows)], np.float32)
    assert_not_worse(weight)


@pytest.mark.parametrize(
    ("codec", "expected"),
    [("v2", (7.63, 16.81, 26.59, 35.59)), ("v3", (7.80, 17.28, 27.29, 36.87))],
)
def test_sqnr_of_a_gaussian(codec, expected):
    encoded = tritllm.encode_depths(gaussian(), DEPTHS, codec)
    assert [encoded[depth].sqnr_db for depth in DEPTHS] == pytest.approx(expected, abs=0.1)


def test_sqnr_of_fewer_planes():
    weight = gaussian()
    q = tritllm.encode(weight, 4)
    energy = np.square(weight, dtype=np.float64).sum()
    got = [to_decibel(np.square(weight - q.decode(r)).sum() / energy) for r in (4, 3, 2, 1)]
    assert got == pytest.approx((36.9, 26.2, 16.5, 7.1), abs=0.15)


@pytest.mark.parametrize("codec", ["v2", "v3"])
def test_several_depths_at_once_equal_each_alone(codec):
    weight = gaussian(48, 200, seed=13)
    together = tritllm.encode_depths(weight, (4, 2, 1, 3), codec)
    assert set(together) == set(DEPTHS)
    for depth in DEPTHS:
        alone = tritllm.encode(weight, depth, codec)
        np.testing.assert_array_equal(together[depth].weight, alone.weight)
        np.testing.assert_array_equal(together[depth].scale, alone.scale)
        np.testing.assert_array_equal(together[depth].codebook, alone.codebook)
        assert (together[depth].error, together[depth].energy) == (alone.error, alone.energy)
