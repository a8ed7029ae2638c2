"""The public encode, TritTensor and decode, against docs/format.md written out in plain NumPy."""

import math
import re
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.codecs import REFERENCE

import tritllm
from tritllm.codec import TritTensor, reference, to_decibel
from tritllm.format.layout import packed_shapes

DTYPES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32))
CODECS = ("v2", "v3")
FIELDS = ("weight", "scale", "codebook")


@st.composite
def matrices(draw, rows=257, columns=257):
    """A matrix of any of the dtypes: Gaussian or Student t, with rows, groups and weights at 0."""
    shape = draw(st.integers(1, rows)), draw(st.integers(1, columns))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    w = rng.standard_normal(shape) if draw(st.booleans()) else rng.standard_t(3, shape)
    w *= np.exp(draw(st.sampled_from([0, 0.5, 2])) * rng.standard_normal((shape[0], 1)))
    w[rng.random(shape) < draw(st.sampled_from([0, 0, 0.5, 0.99]))] = 0
    w = np.ldexp(w / max(1, np.abs(w).max()), draw(st.sampled_from([0, -4, -16, 13])))
    return w.astype(draw(st.sampled_from(DTYPES)))


any_matrix, small_matrix = matrices(), matrices(40, 100)
depths, codecs = st.sampled_from([1, 2, 3, 4]), st.sampled_from(CODECS)


def plain_trits(packed, n):
    digits = packed[..., None] // 3 ** np.arange(5) % 3
    return digits.reshape(*packed.shape[:-1], -1)[..., :n].astype(np.int64) - 1


def plain_decode(q, planes, dtype=np.float32):
    """Docs/format.md, "Value", word by word."""
    k = np.zeros(q.shape, np.int64)
    for plane in q.weight[:planes]:
        k = 3 * k + plain_trits(plane, q.in_features)
    groups = -(-q.in_features // 16)
    t = plain_trits(q.scale, 3 * groups).reshape(-1, groups, 3)
    j = 9 * t[:, :, 0] + 3 * t[:, :, 1] + t[:, :, 2] + 13
    step = q.codebook[planes - 1][j[:, np.arange(q.in_features) // 16]]
    return (k.astype(np.float32) * step).astype(dtype)


def assert_same_bits(got, expected):
    assert got.dtype == expected.dtype
    unsigned = f"u{got.dtype.itemsize}"
    np.testing.assert_array_equal(got.view(unsigned), expected.view(unsigned))


@settings(deadline=None, max_examples=120)
@given(any_matrix, depths, codecs)
def test_decode_gives_level_times_step(weight, depth, codec):
    q = tritllm.encode(weight, depth, codec)
    assert q.shape == weight.shape
    assert q.depth == depth
    assert tuple(getattr(q, f).shape for f in FIELDS) == packed_shapes(*weight.shape, depth)
    q.check_bytes()
    for planes in range(1, depth + 1):
        for dtype in DTYPES:
            with np.errstate(over="ignore"):
                expected = plain_decode(q, planes, dtype)
            assert_same_bits(q.decode(planes, dtype), expected)
        largest = (3**planes - 1) // 2
        level = q.levels(planes)
        assert -largest <= level.min()
        assert level.max() <= largest
        assert (level * weight.astype(np.float32) >= 0).all()  # no weight changes its sign
    assert_same_bits(q.decode(), plain_decode(q, depth))


@settings(deadline=None, max_examples=120)
@given(any_matrix, depths, codecs)
def test_error_and_energy(weight, depth, codec):
    q = tritllm.encode(weight, depth, codec)
    wide = weight.astype(np.float64)
    energy = np.square(wide).sum()
    error = np.square(wide - q.decode()).sum()
    assert math.isclose(q.energy, energy, rel_tol=1e-5)
    assert math.isclose(q.error, error, rel_tol=1e-5, abs_tol=1e-14 * energy)
    assert q.nmse == (q.error / q.energy if q.energy else 0)
    assert q.sqnr_db == to_decibel(q.nmse)


@settings(deadline=None, max_examples=60)
@given(any_matrix, depths, codecs, st.data())
def test_rows(weight, depth, codec, data):
    q = tritllm.encode(weight, depth, codec)
    start = data.draw(st.integers(0, weight.shape[0] - 1))
    stop = data.draw(st.integers(start + 1, weight.shape[0]))
    part = q.rows(start, stop)
    assert part.shape == (stop - start, weight.shape[1])
    assert np.shares_memory(part.weight, q.weight)
    assert part.error is part.energy is part.nmse is part.sqnr_db is None
    assert_same_bits(part.decode(), q.decode()[start:stop])


def group_ends(columns):
    return [*range(0, columns, 16), columns]


@settings(deadline=None, max_examples=60)
@given(matrices(20, 400), depths, codecs, st.data())
def test_columns(weight, depth, codec, data):
    """A cut decodes to the cut of what is decoded, whatever was cut, at every depth and dtype."""
    q = tritllm.encode(weight, depth, codec)
    ends = group_ends(weight.shape[1])
    first = data.draw(st.integers(0, len(ends) - 2))
    start, stop = ends[first], ends[data.draw(st.integers(first + 1, len(ends) - 1))]
    part = q.columns(start, stop)
    assert part.shape == (weight.shape[0], stop - start)
    assert part.error is part.energy is part.nmse is part.sqnr_db is None
    part.check_bytes()
    np.testing.assert_array_equal(part.trits(), q.trits()[:, :, start:stop])
    np.testing.assert_array_equal(
        part.scale_index(), q.scale_index()[:, start // 16 : -(-stop // 16)]
    )
    for planes in range(1, depth + 1):
        for dtype in DTYPES:
            assert_same_bits(part.decode(planes, dtype), q.decode(planes, dtype)[:, start:stop])


@settings(deadline=None, max_examples=40)
@given(matrices(20, 400), depths, st.data())
def test_parts_put_together_are_the_matrix(weight, depth, data):
    q = tritllm.encode(weight, depth)
    rows, columns = weight.shape
    inner = data.draw(st.lists(st.sampled_from(group_ends(columns)), max_size=5))
    middle = data.draw(st.integers(0, rows))
    ends = sorted({0, columns, *inner})
    parts = [
        [q.rows(*r).columns(*c).decode() for c in pairwise(ends)]
        for r in pairwise(sorted({0, middle, rows}))
    ]
    assert_same_bits(np.block(parts), q.decode())
    for start, stop in pairwise(ends):  # a cut of a cut is the cut
        half = start + (stop - start) // 32 * 16
        if start < half < stop:
            again = q.columns(start, stop).columns(half - start, stop - start)
            expected = q.columns(half, stop)
            assert_same_bits(again.weight, expected.weight)
            assert_same_bits(again.scale, expected.scale)


def test_columns_at_multiples_of_80_share_memory():
    q = encoded(columns=250)
    for start, stop in ((0, 80), (80, 240), (160, 250), (0, 250)):
        part = q.columns(start, stop)
        assert np.shares_memory(part.weight, q.weight)
        assert np.shares_memory(part.scale, q.scale)
    assert not np.shares_memory(q.columns(16, 96).weight, q.weight)


@pytest.mark.parametrize(
    ("start", "stop", "message"),
    [
        (8, 32, "columns 8..32 of 250: a cut must be at a multiple of 16"),
        (16, 40, "columns 16..40 of 250: a cut must be at a multiple of 16"),
        (240, 256, "columns 240..256 are not within 0..250"),
        (-16, 16, "columns -16..16 are not within 0..250"),
        (32, 32, "columns 32..32 are not within 0..250"),
        (48, 32, "columns 48..32 are not within 0..250"),
    ],
)
def test_other_columns_are_refused(start, stop, message):
    with pytest.raises(ValueError, match=message):
        encoded(columns=250).columns(start, stop)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 5), (2, 2), (3, 1)])
def test_other_rows_are_refused(start, stop):
    with pytest.raises(ValueError, match=rf"rows {start}..{stop} are not within 0..4"):
        encoded().rows(start, stop)


@settings(deadline=None, max_examples=40)
@given(small_matrix, codecs, st.integers(1, 4))
def test_same_bits_as_the_reference_for_any_threads(weight, codec, threads):
    encoded = tritllm.encode_depths(weight, (1, 2, 3, 4), codec, threads)
    expected = REFERENCE[codec](weight, (1, 2, 3, 4))
    for depth, q in encoded.items():
        for field in FIELDS:
            assert_same_bits(getattr(q, field), getattr(expected[depth], field))
        assert (q.error, q.energy) == (expected[depth].error, expected[depth].energy)
        assert_same_bits(q.decode(threads=threads), q.decode())


@settings(deadline=None, max_examples=40)
@given(small_matrix, codecs)
def test_fewer_planes_are_a_tensor_of_their_own(weight, codec):
    q = tritllm.encode(weight, 4, codec)
    for r in (1, 2, 3):
        top = TritTensor(q.weight[:r], q.scale, q.codebook[:r], q.in_features)
        assert_same_bits(top.decode(), q.decode(r))
        np.testing.assert_array_equal(top.trits(), q.trits(r))
        divisor = 3 ** (4 - r)
        level = q.levels().astype(int)
        np.testing.assert_array_equal(q.levels(r), (2 * level + divisor) // (2 * divisor))


def test_the_gain_of_a_lower_plane_is_least_squares():
    weight = np.random.default_rng(6).standard_normal((64, 256)).astype(np.float32)
    q = tritllm.encode(weight, 4)
    for r in (1, 2, 3):
        decoded = q.decode(r).astype(np.float64)
        assert math.isclose((weight * decoded).sum() / np.square(decoded).sum(), 1, rel_tol=1e-6)


def test_non_contiguous_input_is_the_same_matrix():
    base = np.random.default_rng(7).standard_normal((90, 70)).astype(np.float32)
    for view in (base.T, base[::2], base[:, 3:50], base[::-1, ::-1], np.asfortranarray(base)):
        got, expected = tritllm.encode(view, 2), tritllm.encode(np.ascontiguousarray(view), 2)
        assert_same_bits(got.weight, expected.weight)
        assert_same_bits(got.scale, expected.scale)
        assert_same_bits(got.codebook, expected.codebook)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_size(depth):
    weight = np.random.default_rng(8).standard_normal((1024, 1024)).astype(np.float32)
    q = tritllm.encode(weight, depth, "v2")
    ideal = (depth + 3 / 16) * math.log2(3)
    assert ideal < q.bits_per_weight < 1.015 * ideal
    assert q.nbytes == depth * 1024 * 205 + 1024 * 39 + 108 * depth


# --- Zero and extremes ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("depth", [1, 4])
def test_zeros(dtype, codec, depth):
    q = tritllm.encode(np.zeros((3, 20), dtype), depth, codec)
    assert not q.codebook.any()
    assert not q.scale_index().any()
    assert not q.levels().any()
    assert (q.error, q.energy, q.nmse, q.sqnr_db) == (0, 0, 0, math.inf)
    assert_same_bits(q.decode(), np.zeros((3, 20), np.float32))


def test_negative_zero_comes_back_positive():
    q = tritllm.encode(np.array([[-0.0, 1, -1, -0.0]], np.float32), 3)
    assert np.signbit(q.decode()).tolist() == [[False, False, True, False]]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("largest", [3.4028235e38, 1e30, 1.2e-38, 1e-40, 1e-44])
def test_extreme_scales(largest, depth, codec):
    weight = np.random.default_rng(9).uniform(-1, 1, (20, 50))
    weight = (weight / np.abs(weight).max() * largest).astype(np.float32)
    q = tritllm.encode(weight, depth, codec)
    decoded = q.decode()
    assert np.isfinite(decoded).all()
    assert_same_bits(decoded, plain_decode(q, depth))
    error = np.square(weight.astype(np.float64) - decoded).sum()
    assert math.isclose(q.error, error, rel_tol=1e-5)
    assert q.error <= q.energy


def test_float16_overflow_is_infinite():
    q = tritllm.encode(np.array([[1e5, -1e5]], np.float32), 1)
    assert q.decode(dtype=np.float16).tolist() == [[math.inf, -math.inf]]


# --- Refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 4), (0, 4), (4, 0)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected a matrix \[N, K\]"):
        tritllm.encode(np.ones(shape, np.float32), 2)


@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.int32, bool, np.complex64])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match="expected float16, bfloat16 or float32"):
        tritllm.encode(np.ones((2, 2), dtype), 2)


@pytest.mark.parametrize("depth", [0, 5, -1])
def test_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match=f"depth is {depth}, expected 1..4"):
        tritllm.encode(np.ones((2, 2), np.float32), depth)


@pytest.mark.parametrize("codec", ["v4", "V3", None, ["v3"], 3])
def test_other_codecs_are_refused(codec):
    message = re.escape(f"codec is {codec!r}, expected one of v2, v3")
    with pytest.raises(ValueError, match=message):
        tritllm.encode(np.ones((2, 2), np.float32), 2, codec)


class OwnArray(np.ndarray):
    pass


@pytest.mark.parametrize(
    "view",
    [
        lambda w: np.lib.stride_tricks.as_strided(w, writeable=False),
        lambda w: w[::-1, ::-1].copy()[::-1, ::-1],
        lambda w: np.frombuffer(b"?" + w.tobytes(), np.uint8)[1:].view("f4").reshape(w.shape),
        lambda w: w.view(OwnArray),
        memoryview,
    ],
    ids=["read-only", "negative strides", "unaligned", "subclass", "memoryview"],
)
def test_every_kind_of_array_is_its_values(view):
    weight = np.random.default_rng(11).standard_normal((9, 40)).astype(np.float32)
    got, expected = tritllm.encode(view(weight), 3), tritllm.encode(weight, 3)
    for field in FIELDS:
        assert_same_bits(getattr(got, field), getattr(expected, field))


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (lambda w: w.astype(">f4"), "weight is >f4, expected float16"),
        (lambda w: w.astype(object), "weight is object, expected float16"),
        (lambda w: w.tolist(), "weight is float64, expected float16"),
        (lambda w: np.ma.masked_array(w, w > 1), "weight: its mask"),
        (lambda w: None, r"weight has shape \[\], expected a matrix"),
        (lambda w: np.float32(1), r"weight has shape \[\], expected a matrix"),
    ],
)
def test_what_is_no_matrix_of_floats_is_refused(view, message):
    with pytest.raises(ValueError, match=message):
        tritllm.encode(view(np.ones((3, 17), np.float32)), 2)


@pytest.mark.parametrize("value", [True, 2.0, "2", None, [2], np.float32(2), np.array(2)])
def test_counts_are_integers(value):
    weight = np.ones((2, 20), np.float32)
    with pytest.raises(ValueError, match=r"depth is .*, expected 1..4"):
        tritllm.encode(weight, value)
    with pytest.raises(ValueError, match=r"threads is .*, expected 1 or more"):
        tritllm.encode(weight, 2, threads=value)
    q = tritllm.encode(weight, np.int64(3), threads=np.uint8(2))
    with pytest.raises(ValueError, match=r"threads is .*, expected 1 or more"):
        q.decode(threads=value)
    if value is not None:  # all planes
        with pytest.raises(ValueError, match=r"planes is .*, expected 1..3"):
            q.decode(value)
        with pytest.raises(ValueError, match=r"planes is .*, expected 1..3"):
            q.levels(value)
    with pytest.raises(ValueError, match=r"in_features is .*, expected 1 or more"):
        TritTensor(q.weight, q.scale, q.codebook, value)
    assert type(TritTensor(q.weight, q.scale, q.codebook, np.int64(20)).in_features) is int


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_are_refused(threads):
    with pytest.raises(ValueError, match=f"threads is {threads}, expected 1 or more"):
        tritllm.encode(np.ones((2, 20), np.float32), 2, threads=threads)


def test_no_depth_is_refused():
    with pytest.raises(ValueError, match="no depth is given"):
        tritllm.encode_depths(np.ones((2, 20), np.float32), ())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("value", "name"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_the_first_bad_weight_is_named(dtype, value, name):
    weight = np.random.default_rng(10).standard_normal((40, 33)).astype(dtype)
    weight[3, 32] = weight[4, 0] = weight[39, 1] = value
    for encode in (tritllm.encode, lambda w, d: reference.encode_v3(w, (d,))):
        with pytest.raises(ValueError, match=rf"weight\[3, 32\] is {name}, not a finite number"):
            encode(weight, 2)


def encoded(columns=18, depth=3):
    return tritllm.encode(np.ones((4, columns), np.float32), depth)


def with_byte(q, field, where, value):
    array = getattr(q, field).copy()
    array[where] = value
    return TritTensor(**{f: getattr(q, f) for f in FIELDS} | {field: array}, in_features=18)


@pytest.mark.parametrize(
    ("field", "where", "value", "message"),
    [
        ("weight", (2, 3, 1), 243, "byte 243 at .* is not five trits"),
        ("weight", (2, 0, 0), 255, "byte 255 at .* is not five trits"),
        ("weight", (2, 1, 3), 242, "padding after trit 18"),
        ("scale", (2, 0), 243, "byte 243 at .* is not five trits"),
        ("scale", (2, 1), 242, "padding after trit 6"),
    ],
)
def test_broken_bytes_are_refused(field, where, value, message):
    q = with_byte(encoded(), field, where, value)
    with pytest.raises(ValueError, match=message):
        q.decode()
    with pytest.raises(ValueError, match=message):
        q.check_bytes()
    with pytest.raises(ValueError, match=message):
        q.levels() if field == "weight" else q.scale_index()
    if field == "weight":
        assert_same_bits(q.decode(2), encoded().decode(2))  # plane 2 is not read
    else:
        with pytest.raises(ValueError, match=message):
            q.decode(2)


@pytest.mark.parametrize("planes", [0, 4, -1])
def test_planes_that_are_not_there(planes):
    with pytest.raises(ValueError, match=f"planes is {planes}, expected 1..3"):
        encoded().decode(planes)


@pytest.mark.parametrize("dtype", [np.float64, np.int8])
def test_other_output_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match="is not one of float16, bfloat16, float32"):
        encoded().decode(dtype=dtype)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"weight": a["weight"][0]}, r"expected \[d, N, ceil\(K/5\)\]"),
        (lambda a: a | {"weight": a["weight"][:0]}, "depth is 0"),
        (lambda a: a | {"weight": a["weight"].tolist()}, "planes: a list, expected a NumPy"),
        (lambda a: a | {"codebook": None}, "codebook: a NoneType, expected a NumPy"),
        (lambda a: a | {"scale": np.ma.masked_array(a["scale"])}, "scale indices: its mask"),
        (lambda a: a | {"weight": a["weight"][:, :0], "scale": a["scale"][:0]}, "planes have sha"),
        (lambda a: a | {"codebook": a["codebook"].astype(">f4")}, "codebook are >f4"),
        (lambda a: a | {"in_features": 0}, "in_features is 0, expected 1 or more"),
        (lambda a: a | {"weight": a["weight"][:2]}, "codebook are float32"),
        (lambda a: a | {"weight": a["weight"].astype(np.int8)}, "planes are int8"),
        (lambda a: a | {"weight": a["weight"][:, :, 1:]}, "planes are uint8"),
        (lambda a: a | {"scale": a["scale"][1:]}, "scale indices are uint8"),
        (lambda a: a | {"codebook": a["codebook"].astype(np.float64)}, "codebook are float64"),
        (lambda a: a | {"codebook": a["codebook"] * np.float32(np.nan)}, "not finite"),
        (lambda a: a | {"codebook": -a["codebook"]}, "not ascending"),
        (lambda a: a | {"codebook": a["codebook"] - np.arange(27, dtype="f4")}, "not ascending"),
        (lambda a: a | {"in_features": 33}, "planes are uint8"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    q = encoded()
    arrays = {f: getattr(q, f) for f in FIELDS} | {"in_features": q.in_features}
    with pytest.raises(ValueError, match=message):
        TritTensor(**change(arrays))
