"""The table of encoders, and what an encoder that is added to it meets."""

import numpy as np
import pytest
from support.codecs import REFERENCE
from support.matrices import difference, matrix

import tritllm
from tritllm.codec import ENCODERS, engine
from tritllm.codec.encoded import Encoded
from tritllm.format.layout import packed_shapes
from tritllm.format.trits import pack_scale_index, pack_trits

WEIGHT = matrix(np.random.default_rng(0), (33, 50), "normal", np.dtype(np.float32))


class Signs:
    """One step for the whole matrix, the levels its signs: enough to be an encoder."""

    name = "signs"

    def __init__(self):
        self.seen = []

    def encode(self, weight, depths, *, column_weights=None, threads=1):
        self.seen.append((weight, depths, column_weights, threads))
        return {depth: self._encoded(weight, depth) for depth in depths}

    def _encoded(self, weight, depth):
        _, scale_shape, codebook_shape = packed_shapes(*weight.shape, depth)
        digits = np.zeros((depth, *weight.shape), np.int8)
        digits[-1] = np.sign(weight.astype(np.float32))
        index = np.zeros((weight.shape[0], -(-weight.shape[1] // 16)), np.uint8)
        scale = pack_scale_index(index)
        assert scale.shape == scale_shape
        return Encoded(pack_trits(digits), scale, np.ones(codebook_shape, np.float32), 0.0, 0.0)


def test_each_stands_under_its_name():
    assert list(ENCODERS) == ["v2", "v3"]
    assert all(encoder.name == name for name, encoder in ENCODERS.items())


def test_one_more_line_is_enough(monkeypatch):
    signs = Signs()
    monkeypatch.setitem(ENCODERS, "signs", signs)
    q = tritllm.encode(WEIGHT, 2, "signs")
    np.testing.assert_array_equal(q.decode(), np.sign(WEIGHT))
    with pytest.raises(ValueError, match="expected one of v2, v3, signs"):
        tritllm.encode(WEIGHT, 2, "other")


def test_an_encoder_sees_checked_arguments(monkeypatch):
    signs = Signs()
    monkeypatch.setitem(ENCODERS, "signs", signs)
    c = np.arange(50, dtype=np.float32)
    got = tritllm.encode_depths(
        np.asfortranarray(WEIGHT), (np.int64(3), 1, 3), "signs", np.uint8(2), column_weights=c
    )
    assert list(got) == [3, 1]
    ((weight, depths, column_weights, threads),) = signs.seen
    assert type(weight) is np.ndarray
    assert depths == [3, 1]
    assert {type(depth) for depth in depths} == {int}
    assert column_weights.dtype == np.float64
    np.testing.assert_array_equal(column_weights, c)
    assert (type(threads), threads) == (int, 2)


@pytest.mark.parametrize("codec", ENCODERS)
def test_without_the_native_library_the_reference_runs(monkeypatch, codec):
    monkeypatch.setattr(engine.native, "available", lambda: False)
    engine.warn_of_reference.cache_clear()
    with pytest.warns(RuntimeWarning, match="tritllm runs its NumPy reference"):
        got = ENCODERS[codec].encode(WEIGHT, [1, 4])
    assert not difference(REFERENCE[codec](WEIGHT, [1, 4]), got)
