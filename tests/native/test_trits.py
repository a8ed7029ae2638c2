"""Packing and unpacking give the reference's bytes, and refuse what it refuses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritllm import native
from tritllm.codec import reference


@given(
    lead=st.lists(st.integers(0, 4), max_size=2),
    n=st.integers(0, 257),
    seed=st.integers(0, 2**32 - 1),
)
def test_trits(lead: list[int], n: int, seed: int) -> None:
    trits = np.random.default_rng(seed).integers(-1, 2, (*lead, n)).astype(np.int8)
    packed = native.pack_trits(trits)
    assert np.array_equal(packed, reference.pack_trits(trits))
    assert packed.dtype == np.uint8
    back = native.unpack_trits(packed, n)
    assert np.array_equal(back, trits)
    assert back.dtype == np.int8


@given(rows=st.integers(1, 5), groups=st.integers(1, 60), seed=st.integers(0, 2**32 - 1))
def test_scale_indices(rows: int, groups: int, seed: int) -> None:
    index = np.random.default_rng(seed).integers(0, 27, (rows, groups)).astype(np.uint8)
    packed = native.pack_scale_index(index)
    assert np.array_equal(packed, reference.pack_scale_index(index))
    assert np.array_equal(native.unpack_scale_index(packed, groups), index)


@given(data=st.binary(min_size=12, max_size=12), n=st.integers(16, 20))
def test_any_bytes(data: bytes, n: int) -> None:
    packed = np.frombuffer(data, np.uint8).reshape(3, 4)
    for name in ("unpack_trits", "unpack_scale_index"):
        if name == "unpack_scale_index" and n != 18:
            continue
        count = n if name == "unpack_trits" else 6
        results = []
        for module in (reference, native):
            try:
                results.append(getattr(module, name)(packed, count).tolist())
            except ValueError as error:
                results.append(str(error))
        assert results[0] == results[1]


def test_another_width_is_refused() -> None:
    packed = np.full((2, 4), 121, np.uint8)
    with pytest.raises(ValueError, match="4 bytes a row do not hold 21 trits"):
        native.unpack_trits(packed, 21)
    with pytest.raises(ValueError, match="4 bytes a row do not hold 8 indices"):
        native.unpack_scale_index(packed, 8)
