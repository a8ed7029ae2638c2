"""Column weights: what they must give, checked by other means than the encoder's own."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.matrices import DTYPES, KINDS, difference, matrix

import tritllm
from tritllm.codec import fit, groups, reference

DEPTHS = (1, 2, 3, 4)
LEAST = 2.0**-32  # of the largest column weight: docs/codec.md, "Column weights"

shapes = st.tuples(st.integers(1, 60), st.integers(1, 130))
seeds = st.integers(0, 2**32 - 1)
some = settings(deadline=None, max_examples=20)


def column_weights(rng, columns, kind):
    values = {
        "even": lambda: rng.uniform(0.5, 1.5, columns),
        "spread": lambda: np.exp(3 * rng.standard_normal(columns)),
        "spikes": lambda: np.where(rng.random(columns) < 0.05, 1e6, 1.0),
        "many zeros": lambda: rng.random(columns) * (rng.random(columns) < 0.3),
        "far apart": lambda: 10.0 ** rng.uniform(-300, 300, columns),
    }[kind]()
    return values.astype(rng.choice([np.float32, np.float64])) if kind != "far apart" else values


WEIGHT_KINDS = ("even", "spread", "spikes", "many zeros", "far apart")


def squared_errors(weight, tensor):
    """float64 [K]: the squared error of each column."""
    wide = weight.astype(np.float64) - tensor.decode()
    return np.square(wide).sum(axis=0)


@some
@given(shapes, st.sampled_from(KINDS), st.sampled_from(DTYPES), seeds, st.data())
def test_equal_weights_change_no_bit(shape, kind, dtype, seed, data):
    weight = matrix(np.random.default_rng(seed), shape, kind, dtype)
    plain = reference.encode_v3(weight, DEPTHS)
    value = data.draw(st.sampled_from([0.0, 1.0, 0.3, 5e-324, 1.7e308]))
    ones = np.full(shape[1], value)
    assert not difference(plain, reference.encode_v3(weight, DEPTHS, ones))


def test_ones_are_the_same_as_none_in_public():
    weight = matrix(np.random.default_rng(1), (90, 333), "heavy", np.dtype(np.float16))
    plain = tritllm.encode_depths(weight, DEPTHS)
    for ones in (np.ones(333), np.ones(333, np.float32)):
        assert not difference(plain, tritllm.encode_depths(weight, DEPTHS, column_weights=ones))


@pytest.mark.parametrize("kind", WEIGHT_KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (70, 200), (257, 1040)], ids=str)
def test_never_worse_than_without_weights(shape, kind):
    check_not_worse(shape, "heavy", kind, 7)


@some
@given(shapes, st.sampled_from(["normal", "ties", "sparse", "ternary"]), seeds, st.data())
def test_never_worse_than_without_weights_on_any_matrix(shape, kind, seed, data):
    check_not_worse(shape, kind, data.draw(st.sampled_from(WEIGHT_KINDS)), seed)


def check_not_worse(shape, kind, weight_kind, seed):
    """The unweighted codebook is a candidate, searched by weighted error; what is left is rounding.

    Each group's error is compared in float32: at most 24 roundings of 2**-24 each (the level times
    the step, the difference, its square, the weight and its product, 15 sums) on either side. And
    columns below LEAST of the largest weight count as LEAST of it.
    """
    rng = np.random.default_rng(seed)
    weight = matrix(rng, shape, kind, np.dtype(np.float32))
    c = column_weights(rng, shape[1], weight_kind)
    plain = tritllm.encode_depths(weight, DEPTHS)
    weighted = tritllm.encode_depths(weight, DEPTHS, column_weights=c)
    relative = c / c.max() if c.any() else np.ones(shape[1])
    for depth in DEPTHS:
        without = squared_errors(weight, plain[depth])
        limit = without @ relative + LEAST * without.sum()
        error = squared_errors(weight, weighted[depth]) @ relative
        assert error <= limit * (1 + 48 * 2.0**-24)


@pytest.mark.parametrize("kind", ["spread", "spikes"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_weights_are_followed(kind, depth):
    rng = np.random.default_rng(2)
    weight = matrix(rng, (64, 512), "normal", np.dtype(np.float32))
    c = column_weights(rng, 512, kind).astype(np.float64)
    plain = squared_errors(weight, tritllm.encode(weight, depth)) @ c
    weighted = squared_errors(weight, tritllm.encode(weight, depth, column_weights=c)) @ c
    assert weighted < 0.6 * plain


@some
@given(shapes, st.sampled_from(WEIGHT_KINDS), st.sampled_from(DEPTHS), seeds)
def test_each_group_has_the_entry_of_the_least_weighted_error(shape, kind, depth, seed):
    rng = np.random.default_rng(seed)
    weight = matrix(rng, shape, "normal", np.dtype(np.float32))
    c = column_weights(rng, shape[1], kind)
    q = tritllm.encode(weight, depth, column_weights=c)
    u = np.maximum(c.astype(np.float64) / c.max() if c.any() else np.ones(shape[1]), LEAST)
    steps = q.codebook[-1].astype(np.float64)
    if not steps.all():
        return  # a matrix of zeros
    level = np.minimum(np.rint(np.abs(weight[..., None]) / steps), (3**depth - 1) // 2)
    squares = u[:, None] * np.square(np.abs(weight[..., None]) - level * steps)
    index = q.scale_index()
    for g in range(index.shape[1]):
        by_entry = squares[:, 16 * g : 16 * g + 16].sum(axis=1)
        chosen = np.take_along_axis(by_entry, index[:, g : g + 1].astype(int), 1)[:, 0]
        assert (chosen <= by_entry.min(axis=1) * (1 + 1e-5)).all()


def test_columns_without_weight_are_encoded_well_where_nothing_else_speaks():
    rng = np.random.default_rng(3)
    weight = matrix(rng, (32, 96), "normal", np.dtype(np.float32))
    c = np.ones(96)
    c[32:64] = 0  # two whole groups
    q = tritllm.encode(weight, 3, column_weights=c)
    plain = squared_errors(weight, tritllm.encode(weight, 3))[32:64].sum()
    assert squared_errors(weight, q)[32:64].sum() < 1.1 * plain


def test_the_gain_of_a_lower_plane_is_weighted_least_squares():
    rng = np.random.default_rng(4)
    weight = matrix(rng, (64, 256), "normal", np.dtype(np.float32))
    c = np.exp(rng.standard_normal(256))
    q = tritllm.encode(weight, 4, column_weights=c)
    for r in (1, 2, 3):
        decoded = q.decode(r).astype(np.float64)
        gain = ((weight * decoded) @ c).sum() / (np.square(decoded) @ c).sum()
        assert gain == pytest.approx(1, rel=1e-6)


def test_error_and_energy_count_all_columns_alike():
    rng = np.random.default_rng(5)
    weight = matrix(rng, (40, 100), "heavy", np.dtype(np.float32))
    q = tritllm.encode(weight, 2, column_weights=np.exp(rng.standard_normal(100)))
    assert q.error == pytest.approx(squared_errors(weight, q).sum(), rel=1e-5)
    assert q.energy == pytest.approx(np.square(weight, dtype=np.float64).sum(), rel=1e-5)


def test_a_power_of_two_changes_no_bit():
    rng = np.random.default_rng(6)
    weight = matrix(rng, (30, 90), "normal", np.dtype(np.float32))
    c = np.exp(rng.standard_normal(90))
    plain = reference.encode_v3(weight, DEPTHS, c)
    for power in (-900, 900):
        assert not difference(plain, reference.encode_v3(weight, DEPTHS, np.ldexp(c, power)))


def test_block_size_changes_nothing(monkeypatch):
    rng = np.random.default_rng(8)
    weight = matrix(rng, (40, 100), "normal", np.dtype(np.float32))
    c = np.exp(rng.standard_normal(100))
    whole = reference.encode_v3(weight, (2, 4), c)
    monkeypatch.setattr(groups, "BLOCK_GROUPS", 21)
    assert not difference(whole, reference.encode_v3(weight, (2, 4), c))


def test_the_sample_takes_the_groups_that_count_most():
    rng = np.random.default_rng(9)
    weight = rng.uniform(0.5, 1, (400, 160)).astype(np.float32)
    c = np.ones(160)
    c[5 * 16] = 2.0**12
    statistics = groups.gather_statistics(weight, c)
    chosen, in_tail = fit.sample_groups(statistics.prominence)
    assert set(range(5, 4000, 10)) <= set(chosen[in_tail].tolist())


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c * np.where(np.arange(20) == 7, np.nan, 1), r"column_weights\[7\] is nan"),
        (lambda c: c * np.where(np.arange(20) == 3, np.inf, 1), r"column_weights\[3\] is inf"),
        (lambda c: c - 2 * (np.arange(20) == 19), r"column_weights\[19\] is -1.0, expected a fin"),
        (lambda c: c[1:], r"column_weights have shape \[19\], expected \[20\]"),
        (lambda c: c[:, None], r"column_weights have shape \[20, 1\], expected \[20\]"),
        (lambda c: 1.0, r"column_weights have shape \[\], expected \[20\]"),
        (lambda c: c.astype(int), "column_weights are int64, expected float32 or float64"),
        (lambda c: c.astype(">f4"), "column_weights are >f4, expected float32 or float64"),
        (lambda c: c.astype(object), "column_weights are object, expected float32 or float64"),
        (lambda c: np.ma.masked_array(c, c > 2), "column_weights: its mask"),
    ],
)
def test_other_column_weights_are_refused(change, message):
    weight = np.ones((3, 20), np.float32)
    with pytest.raises(ValueError, match=message) as refusal:
        tritllm.encode(weight, 2, column_weights=change(np.ones(20)))
    assert "\n" not in str(refusal.value)


def test_v2_takes_none():
    weight = np.ones((3, 20), np.float32)
    with pytest.raises(ValueError, match="codec v2 takes no column weights"):
        tritllm.encode(weight, 2, "v2", column_weights=np.ones(20))


# --- The definition, pinned -----------------------------------------------------------------------

# SHA-256 of planes, scale indices and codebook at depths 1 to 4 of `count` matrices: what
# docs/codec.md defines, as it was first written. Another value is another encoder. Small matrices
# reach the guard, larger ones the sample.
PINNED = {
    (1, 50, 1280): "ebf26dd00ab0a0ed43558421bf4ec459be14bcec51a3475313fd32a3d514fdf9",
    (1, 61, 1033): "2ec630d946cef1137f6905352cc3cce1e20eb8ea2056307955010fd687aa3246",
    (50, 1, 20): "99d603606c618883bb27c050f82fedd3f5b8270b7bff83a3b46c4e389be9e6d9",
}


@pytest.mark.parametrize("case", PINNED, ids=str)
def test_the_bits_of_the_definition(case):
    """Inputs are integers times powers of two, the same on every machine."""
    count, rows, columns = case
    n = np.arange(count * rows * columns, dtype=np.uint64)
    mixed = (n * np.uint64(2654435761) + np.uint64(12345)) % np.uint64(2**32)
    mixed = (mixed * mixed >> np.uint64(16)) % np.uint64(2**16)
    matrices = (mixed.astype(np.float32) - 32768).reshape(count, rows, columns)
    c = np.ldexp(1.0 + np.arange(columns) % 11, np.arange(columns) * 7 % 23 - 12)
    digest = hashlib.sha256()
    for weight in np.ldexp(matrices, np.arange(rows)[:, None] % 7 - 20):
        encoded = reference.encode_v3(weight.astype(np.float32), DEPTHS, c)
        for depth in DEPTHS:
            for field in ("weight", "scale", "codebook"):
                array = getattr(encoded[depth], field)
                digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    assert digest.hexdigest() == PINNED[case]
