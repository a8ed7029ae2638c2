"""Prepared memory decoded: the numbers of the reference, for any rows and any number of threads."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from support.native_library import needs_library
from support.weights import random_weights

from tritllm import products as kernels

pytestmark = needs_library

DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16]


def expected(weights, planes: int, dtype) -> np.ndarray:
    """float32(level * step), rounded once more to dtype."""
    level, index, steps = weights.at(planes)
    step = np.repeat(steps[index], 16, axis=1)[:, : level.shape[1]]
    return (level.astype(np.float32) * step).astype(dtype)


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint8)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_weights_are_the_references(isa, depth, dtype):
    for seed, (rows, columns) in enumerate([(1, 1), (33, 96), (50, 107), (16, 497), (130, 192)]):
        weights = random_weights(seed, rows, columns, depth)
        prepared = kernels.prepare(weights.tensor, isa=isa, planes_apart=True)
        for planes in range(1, depth + 1):
            found = kernels.decode(prepared, planes=planes, dtype=dtype)
            assert found.dtype == dtype
            assert np.array_equal(bits(found), bits(expected(weights, planes, dtype)))


@pytest.mark.parametrize("threads", [1, 3])
def test_any_range_of_rows(isa, threads):
    weights = random_weights(5, 300, 100, 2)
    prepared, whole = kernels.prepare(weights.tensor, isa=isa), expected(weights, 2, np.float32)
    for rows in (slice(0, 300), slice(3, 5), slice(15, 17), slice(31, 290), slice(299, None),
                 slice(7, 7)):  # fmt: skip
        found = kernels.decode(prepared, rows, threads=threads)
        assert np.array_equal(bits(found), bits(whole[rows]))


def test_rows_apart_and_nothing_written_between(isa):
    """As callers with a buffer of their own ask for it."""
    weights = random_weights(6, 40, 33, 3)
    prepared, out = kernels.prepare(weights.tensor, isa=isa), np.full((40, 50), 7, np.float32)
    kernels.decode_pointers(product_of(prepared, out[2:]), 33, 2, 39)
    assert np.array_equal(out[2:39, :33], expected(weights, 3, np.float32)[2:39])
    out[2:39, :33] = 7
    assert np.all(out == 7)


def product_of(prepared, out, **changed):
    """What `decode` hands over, for all planes."""
    product = prepared.product(out)
    for name, value in changed.items():
        setattr(product, name, value)
    return product


def test_what_is_not_the_memory_is_refused(isa):
    prepared = kernels.prepare(random_weights(2, 33, 70, 3).tensor, isa=isa)
    out = np.empty((33, 70), np.float32)
    for changed in (
        {"size": prepared.nbytes - 64}, {"rows": 32}, {"layout": 7}, {"depth": 4}, {"stride": 69},
        {"dtype": 3},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="is not that of a matrix"):
            kernels.decode_pointers(product_of(prepared, out, **changed), 70, 0, 33)
    for columns, begin, end in ((69, 0, 33), (70, -1, 3), (70, 4, 3), (70, 0, 34)):
        with pytest.raises(ValueError, match="is not that of a matrix"):
            kernels.decode_pointers(product_of(prepared, out), columns, begin, end)
    for planes in (0, 4):
        with pytest.raises(ValueError, match=f"planes is {planes}"):
            kernels.decode(prepared, planes=planes)
    with pytest.raises(ValueError, match="step of 2"):
        kernels.decode(prepared, slice(0, 9, 2))
    with pytest.raises(TypeError, match="float64"):
        kernels.decode(prepared, dtype=np.float64)
    damaged = dataclasses.replace(prepared, memory=prepared.memory[:64])
    with pytest.raises(ValueError, match="prepared memory of 64 bytes"):
        kernels.decode(damaged)
