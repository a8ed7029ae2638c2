"""The native encoder gives the reference's bits."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.codecs import NATIVE, REFERENCE
from support.matrices import DTYPES, KINDS, difference, matrix
from support.native_library import needs_library

from tritllm import native
from tritllm.codec import native_encode, reference

pytestmark = needs_library

DEPTHS = [1, 2, 3, 4]


@pytest.mark.parametrize("codec", ["v2", "v3"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits(isa: str, kind: str, dtype: np.dtype, codec: str) -> None:
    weight = matrix(np.random.default_rng(len(kind)), (35, 250), kind, dtype)
    expected = REFERENCE[codec](weight, DEPTHS)
    assert not difference(expected, NATIVE[codec](weight, DEPTHS, isa=isa))


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 257),
    columns=st.integers(1, 257),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    codec=st.sampled_from(["v2", "v3"]),
    depths=st.lists(st.sampled_from(DEPTHS), min_size=1, max_size=4, unique=True),
    seed=st.integers(0, 2**32 - 1),
)
def test_same_bits_of_any_shape(
    rows: int, columns: int, kind: str, dtype: np.dtype, codec: str, depths: list[int], seed: int
) -> None:
    weight = matrix(np.random.default_rng(seed), (rows, columns), kind, dtype)
    expected = REFERENCE[codec](weight, depths)
    for number, isa in enumerate(native.isas()):
        found = NATIVE[codec](weight, depths, threads=number + 1, isa=isa)
        assert not difference(expected, found), isa


@pytest.mark.parametrize("columns", [*range(1, 34), 79, 80, 81, 96, 112, 128, 144, 159, 160, 161])
def test_every_tail(isa: str, columns: int) -> None:
    weight = matrix(np.random.default_rng(columns), (17, columns), "normal", DTYPES[0])
    expected = reference.encode_v3(weight, [4, 1])
    assert not difference(expected, native_encode.encode_v3(weight, [4, 1], isa=isa))


@pytest.mark.parametrize("codec", ["v2", "v3"])
def test_more_groups_than_the_sample(isa: str, codec: str) -> None:
    weight = matrix(np.random.default_rng(1), (300, 1000), "heavy", DTYPES[1])
    expected = REFERENCE[codec](weight, [2, 3])
    assert not difference(expected, NATIVE[codec](weight, [2, 3], threads=2, isa=isa))


def test_steps_that_vanish(isa: str) -> None:
    smallest = np.float32(2.0**-149)
    weight = (np.arange(1, 65).reshape(2, 32) * smallest).astype(np.float32)
    for codec in ("v2", "v3"):
        expected = REFERENCE[codec](weight, DEPTHS)
        assert not difference(expected, NATIVE[codec](weight, DEPTHS, isa=isa))


def test_of_two_entries_without_error_the_first_is_taken(isa: str) -> None:
    """Where steps are few multiples of the smallest float, several entries hit a weight exactly."""
    bits = np.zeros((4, 20), np.uint32)
    bits[2, [0, 1, 7, 16]] = 5, 1024, 24268, 91
    weight = bits.view(np.float32)
    for codec in ("v2", "v3"):
        expected = REFERENCE[codec](weight, DEPTHS)
        assert not difference(expected, NATIVE[codec](weight, DEPTHS, isa=isa))


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads_change_nothing(threads: int) -> None:
    weight = matrix(np.random.default_rng(2), (513, 333), "heavy", DTYPES[0])
    expected = native_encode.encode_v3(weight, DEPTHS)
    assert not difference(expected, native_encode.encode_v3(weight, DEPTHS, threads=threads))


def test_depth_of_several_is_that_depth_alone() -> None:
    weight = matrix(np.random.default_rng(3), (64, 160), "normal", DTYPES[2])
    together = native_encode.encode_v3(weight, DEPTHS)
    for depth in DEPTHS:
        assert not difference({depth: together[depth]}, native_encode.encode_v3(weight, [depth]))


def test_other_layouts_of_memory() -> None:
    wide = matrix(np.random.default_rng(4), (48, 200), "normal", DTYPES[0])
    unaligned = np.frombuffer(b"\0" + wide.tobytes(), np.uint8)[1:].view(np.float16)
    views = (
        wide[:, 3:100],
        wide[::2],
        wide[:, ::2],
        wide.T,
        wide[::-1],
        unaligned.reshape(48, 200),
    )
    for view in views:
        expected = reference.encode_v3(np.array(view), [2])
        assert not difference(expected, native_encode.encode_v3(view, [2], threads=2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_names_the_first_weight_that_is_not_finite(isa: str, dtype: np.dtype, bad: float) -> None:
    weight = np.ones((40, 50), dtype)
    weight[30, 1] = np.nan
    weight[21, 7] = bad
    with pytest.raises(ValueError, match="not a finite number") as expected:
        reference.encode_v3(weight, [2])
    with pytest.raises(ValueError, match="not a finite number") as found:
        native_encode.encode_v3(weight, [2], threads=2, isa=isa)
    assert str(found.value) == str(expected.value)
    assert "weight[21, 7]" in str(found.value)


def test_refusals() -> None:
    weight = np.ones((2, 16), np.float16)
    with pytest.raises(ValueError, match="depth 5"):
        native_encode.encode_v3(weight, [5])
    with pytest.raises(ValueError, match="not a matrix"):
        native_encode.encode_v3(weight[:0], [1])
    with pytest.raises(TypeError, match="float64"):
        native_encode.encode_v3(weight.astype(np.float64), [1])
    with pytest.raises(TypeError, match="float8"):
        native_encode.encode_v3(weight.astype(ml_dtypes.float8_e4m3fn), [1])
    with pytest.raises(ValueError, match="isa=sse: unknown"):
        native_encode.encode_v3(weight, [1], isa="sse")
