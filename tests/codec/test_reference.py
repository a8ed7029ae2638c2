"""Properties of the definition itself, each checked by other means than its own."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritllm.codec import codebooks, fit, groups, reference
from tritllm.format import trits as trit

depths = st.integers(1, 4)
float32 = np.float32
quick = settings(deadline=None, max_examples=100)


def every_level(depth):
    largest = trit.max_level(depth)
    return np.arange(-largest, largest + 1)


# --- Trits ----------------------------------------------------------------------------------------


def test_max_level():
    assert [trit.max_level(depth) for depth in (1, 2, 3, 4)] == [1, 4, 13, 40]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_every_level_has_its_own_trits(depth):
    level = every_level(depth)
    trits = trit.levels_to_trits(level, depth)
    assert trits.dtype == np.int8
    assert set(np.unique(trits)) <= {-1, 0, 1}
    powers = 3 ** np.arange(depth - 1, -1, -1)
    np.testing.assert_array_equal(powers @ trits, level)
    np.testing.assert_array_equal(trit.trits_to_levels(trits), level)
    assert len({tuple(column) for column in trits.T}) == 3**depth


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_dropping_planes_rounds_to_nearest(depth):
    """The r top planes hold round(k / 3**m), and no k / 3**m lies halfway."""
    trits = trit.levels_to_trits(every_level(depth), depth)
    for planes in range(1, depth + 1):
        divisor = 3 ** (depth - planes)
        for k, top in zip(every_level(depth), trit.trits_to_levels(trits[:planes])):
            assert 2 * abs(int(k) - int(top) * divisor) < divisor
            assert top == round(k / divisor)


@quick
@given(depths, st.integers(1, 4), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_levels_trits_bytes_round_trip(depth, rows, columns, seed):
    largest = trit.max_level(depth)
    level = np.random.default_rng(seed).integers(-largest, largest + 1, (rows, columns))
    packed = trit.pack_trits(trit.levels_to_trits(level, depth))
    assert packed.shape == (depth, rows, -(-columns // 5))
    assert packed.dtype == np.uint8
    np.testing.assert_array_equal(trit.trits_to_levels(trit.unpack_trits(packed, columns)), level)


@quick
@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=23))
def test_bytes_by_hand(trits):
    whole = trits + [0] * (-len(trits) % 5)
    expected = [
        sum((whole[5 * b + i] + 1) * 3**i for i in range(5)) for b in range(len(whole) // 5)
    ]
    assert trit.pack_trits(np.array(trits, np.int8)).tolist() == expected


@quick
@given(st.integers(1, 3), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_scale_indices_by_hand(rows, groups, seed):
    index = np.random.default_rng(seed).integers(0, 27, (rows, groups)).astype(np.uint8)
    digits = [[d for j in row for d in (j // 9, j // 3 % 3, j % 3)] for row in index.tolist()]
    trits = np.array(digits, np.int8) - np.int8(1)  # the trits of j - 13 are j's digits less one
    packed = trit.pack_scale_index(index)
    np.testing.assert_array_equal(packed, trit.pack_trits(trits))
    np.testing.assert_array_equal(trit.unpack_scale_index(packed, groups), index)


def test_bad_bytes_are_refused():
    with pytest.raises(ValueError, match=r"byte 243 at \(1, 0\) is not five trits"):
        trit.unpack_trits(np.array([[0, 1], [243, 2]], np.uint8), 10)
    with pytest.raises(ValueError, match="padding after trit 8 of a row is not zero"):
        trit.unpack_trits(np.array([[121, 121 + 81]], np.uint8), 8)
    with pytest.raises(ValueError, match="padding after trit 3"):
        trit.unpack_scale_index(np.array([[121 - 27]], np.uint8), 1)


# --- Codebooks ------------------------------------------------------------------------------------


def scales(low=-64, high=0):
    """Float32 in [2**low, 2**(high + 1))."""
    return st.builds(
        lambda exponent, mantissa: float32(math.ldexp(1 + mantissa / 2**23, exponent)),
        st.integers(low, high),
        st.integers(0, 2**23 - 1),
    )


@quick
@given(scales(), scales(), st.sampled_from([2, 27, 256]))
def test_log_spaced(one, other, n):
    low, high = sorted((one, other))
    entries = codebooks.log_spaced(low, high, n)
    assert entries.dtype == np.float32
    assert entries.shape == (n,)
    assert (entries[0], entries[-1]) == (low, high)
    assert (np.diff(entries) >= 0).all()
    expected = np.exp(np.linspace(np.log(float(low)), np.log(float(high)), n))
    np.testing.assert_allclose(entries, expected, rtol=1e-6)


@pytest.mark.parametrize("ulps", [0, 1, 2, 30])
def test_log_spaced_over_few_values(ulps):
    low = float32(0.7)
    high = (low.view(np.uint32) + np.uint32(ulps)).view(np.float32)
    entries = codebooks.log_spaced(low, high)
    assert (entries[0], entries[-1]) == (low, high)
    assert (np.diff(entries) >= 0).all()


@quick
@given(scales(), scales(), st.lists(scales(), min_size=1, max_size=20))
def test_nearest_entry(one, other, values):
    codebook = codebooks.log_spaced(*sorted((one, other)))
    index = codebooks.nearest_entry(np.array(values), codebook)
    midpoints = [float32(math.sqrt(float(p) * float(q))) for p, q in pairwise(codebook)]
    for value, j in zip(values, index):
        assert j == sum(midpoint < value for midpoint in midpoints)
        distance = [abs(math.log(value / entry)) for entry in codebook.astype(np.float64)]
        assert distance[j] <= min(distance) + 1e-6


def test_nearest_entry_of_equal_entries_is_the_first():
    codebook = np.full(27, 0.5, np.float32)
    assert codebooks.nearest_entry(np.array([0, 0.5], np.float32), codebook).tolist() == [0, 0]


def test_v2_codebook_starts_at_the_0_1th_percentile():
    scales = np.linspace(1, 2, 3001, dtype=np.float32)
    codebook = reference.v2_codebook(np.concatenate([scales[::-1], np.zeros(50, np.float32)]))
    assert (codebook[0], codebook[-1]) == (scales[3], scales[-1])
    assert reference.v2_codebook(scales[:1000])[0] == scales[0]
    assert not reference.v2_codebook(np.zeros(3, np.float32)).any()


# --- Errors ---------------------------------------------------------------------------------------


def error_by_hand(magnitudes, step, depth):
    inverse = float32(1) / step
    total = None
    for a in magnitudes:
        level = min(round(float(float32(a * inverse))), trit.max_level(depth))
        e = float32(a - float32(float32(level) * step))
        total = e * e if total is None else float32(total + e * e)
    return total


def random_magnitudes(seed, n):
    rng = np.random.default_rng(seed)
    a = np.abs(rng.standard_normal((16, n))) * np.exp(rng.standard_normal(n))
    a[:, 0] = 0
    a[:, -1] = np.round(a[:, -1])
    return a.astype(np.float32)


@settings(deadline=None, max_examples=20)
@given(depths, st.integers(0, 2**32 - 1), st.integers(0, 26))
def test_search_entries(depth, seed, twin):
    """The first of the entries with the least error, also where neighbours are equal."""
    a = random_magnitudes(seed, 4)
    top = float32(a.max() / trit.max_level(depth))
    steps = codebooks.log_spaced(float32(top / 20), top)
    steps[twin:] = np.maximum(steps[max(twin - 2, 0)], steps[twin:])
    steps[max(twin - 2, 0) : twin + 1] = steps[twin]
    index, error = reference.search_entries(a, steps, depth)
    for g in range(a.shape[1]):
        by_hand = [error_by_hand(a[:, g], step, depth) for step in steps]
        assert error[g] == min(by_hand)
        assert index[g] == by_hand.index(min(by_hand))
    assert index[0] == 0  # the group of zeros


@settings(deadline=None, max_examples=30)
@given(depths, st.integers(0, 2**32 - 1))
def test_v2_scales(depth, seed):
    weight = random_magnitudes(seed, 5).T.reshape(1, -1)
    statistics = groups.gather_statistics(weight)
    scale = reference.v2_scales(statistics, depth)
    for g in range(5):
        a = np.ldexp(weight[0, 16 * g : 16 * g + 16], -statistics.exponent)
        candidates = [c for c in np.sort(a)[[10, 12, 14, 15]] if c > 0]
        largest = float32(trit.max_level(depth))
        errors = [error_by_hand(a, c / largest, depth) for c in candidates]
        assert scale[g] == (candidates[errors.index(min(errors))] if candidates else 0)


def test_v2_candidates_tie_to_the_first():
    weight = np.array([[0] * 6 + [1] * 5 + [2] * 5], np.float32)  # both leave an error of 5
    statistics = groups.gather_statistics(weight)
    assert np.ldexp(reference.v2_scales(statistics, 1), statistics.exponent).tolist() == [1]


def test_the_exponent_changes_nothing_else():
    weight = np.random.default_rng(3).standard_normal((7, 50)).astype(np.float32)
    for encode in (reference.encode_v2, reference.encode_v3):
        plain = encode(weight, (1, 2, 3, 4))
        for shift in (-90, 60):
            moved = encode(np.ldexp(weight, shift), (1, 2, 3, 4))
            for depth, expected in plain.items():
                got = moved[depth]
                np.testing.assert_array_equal(got.weight, expected.weight)
                np.testing.assert_array_equal(got.scale, expected.scale)
                np.testing.assert_array_equal(got.codebook, np.ldexp(expected.codebook, shift))
                assert got.error == math.ldexp(expected.error, 2 * shift)


def test_negligible_magnitudes_are_zero():
    weight = np.zeros((1, 48), np.float32)
    weight[0, [0, 16, 32]] = 1, 2.0**-64, 2.0**-65
    order = groups.gather_statistics(weight).order
    assert order[3].tolist() == [1, 2.0**-64, 0]


def test_block_size_changes_nothing(monkeypatch):
    weight = np.random.default_rng(4).standard_normal((40, 100)).astype(np.float32)
    whole = reference.encode_v3(weight, (2, 4))
    monkeypatch.setattr(groups, "BLOCK_GROUPS", 21)
    for depth, expected in whole.items():
        got = reference.encode_v3(weight, (depth,))[depth]
        np.testing.assert_array_equal(got.weight, expected.weight)
        np.testing.assert_array_equal(got.scale, expected.scale)
        np.testing.assert_array_equal(got.codebook, expected.codebook)
        assert (got.error, got.energy) == (expected.error, expected.energy)


# --- The sample -----------------------------------------------------------------------------------


def test_sample_of_few_groups_is_all_that_are_not_zero():
    largest = np.array([0, 1, 0.5, 0, 2], np.float32)
    chosen, in_tail = fit.sample_groups(largest)
    assert chosen.tolist() == [1, 2, 4]
    assert in_tail.all()  # at most TAIL_SAMPLE groups: all of them


def test_sample_takes_the_tail_whole():
    rng = np.random.default_rng(5)
    largest = np.exp(rng.standard_normal(50_000)).astype(np.float32)
    chosen, in_tail = fit.sample_groups(largest)
    tail = chosen[in_tail]
    assert 0 < len(tail) <= fit.TAIL_SAMPLE
    assert len(chosen) - len(tail) <= fit.BODY_SAMPLE
    lowest = largest[tail].min()
    assert len(tail) == (largest >= lowest).sum()
    bins = largest.view(np.uint32) >> 16
    below = bins[bins < bins[tail].min()].max()  # the next bin would be too much
    assert len(tail) + (bins == below).sum() > fit.TAIL_SAMPLE
    even = set((np.arange(2048) * 50_000 // 2048).tolist())
    assert set(chosen.tolist()) == even | set(tail.tolist())
