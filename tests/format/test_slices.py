"""Matrices of stored tensors in rows: equal values, contiguous, and no copy where none is due."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tritllm.format.slices import in_rows

SHAPES = [(3, 5), (1, 7), (40, 2100), (1100, 33)]  # the last two are more than a block


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_contiguous_and_equal(shape: tuple[int, int], dtype: np.typing.DTypeLike) -> None:
    stored = (np.arange(shape[0] * shape[1]) % 251).reshape(shape).astype(dtype)
    for matrix in (stored, stored.T, stored[::2], stored.T[::2]):
        found = in_rows(matrix)
        assert found.flags.c_contiguous
        assert found.dtype == stored.dtype
        np.testing.assert_array_equal(found, matrix)
    assert np.shares_memory(in_rows(stored), stored)
