"""The activation code of every instruction set that runs here: the bytes that the twin defines."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import pytest
from support.native_library import needs_library

from tritllm import products as kernels
from tritllm.native.arrays import address, aligned_bytes, dtype_number
from tritllm.native.instruction_sets import isa_number
from tritllm.native.library import library
from tritllm.native.structures import OK, Input
from tritllm.products import reference

pytestmark = needs_library

HEADER, BLOCK = 64, 96  # bytes; columns
LEVELS = (1, 4, 13, 40)


def prepared_activations(isa: str, x: np.ndarray, arithmetic: int) -> np.ndarray:
    """uint8 [batch, bytes of a row] as this instruction set's own functions fill them."""
    batch, columns = x.shape
    memory = aligned_bytes(kernels.scratch_size(batch, columns, arithmetic))
    memory[:] = 0xA5
    call = Input(address(x), columns, batch, columns, dtype_number(x.dtype), arithmetic)
    number = isa_number(isa, "products")
    assert library().tritllm_linear_begin(number, ctypes.byref(call), address(memory)) == OK
    assert library().tritllm_linear_quantize(ctypes.byref(call), 0, batch, address(memory)) == OK
    return memory[HEADER:].reshape(batch, -1)


def hard_rows(columns: int, dtype: type) -> np.ndarray:
    """Ordinary rows, ties of the rounding, large and small magnitudes, NaN and infinity."""
    rng = np.random.default_rng(columns)
    x = rng.standard_normal((9, columns)).astype(np.float32)
    x[1] = rng.integers(-254, 255, columns) / 2  # 127 units a group: many halves
    x[1, ::16] = 127
    x[2] *= 1e4
    x[3] *= 2.0**-24
    x[4] = 0
    x[5, columns // 2] = np.nan
    x[6, columns // 3] = -np.inf
    x[7] = np.where(x[7] > 0, 1, -1)
    return np.ascontiguousarray(x.astype(dtype))


@pytest.mark.parametrize("columns", [1, 15, 16, 95, 96, 97, 333])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize(
    ("arithmetic", "twin"),
    [(kernels.GROUPS, reference.quantize), (kernels.PER_TOKEN, reference.quantize_token)],
)
def test_int8_activations_are_the_twins(isa, columns, dtype, arithmetic, twin) -> None:
    x = hard_rows(columns, dtype)
    found = prepared_activations(isa, x, arithmetic)
    expected = twin(x)
    blocks, groups = -(-columns // BLOCK), -(-columns // 16)
    q = found[:, : blocks * BLOCK].view(np.int8).reshape(len(x), -1, 16)
    assert (q[:, :groups] == expected.q).all()
    assert not q[:, groups:].any()
    after = found[:, blocks * BLOCK : blocks * (BLOCK + 120)].view(np.int32)
    offsets = after[:, : 24 * blocks].reshape(len(x), 4, -1)
    sums = q.astype(np.int32).sum(axis=2)
    assert (offsets == [[-level * row for level in LEVELS] for row in sums]).all()
    scale = np.ascontiguousarray(after[:, 24 * blocks :]).view(np.float32)
    np.testing.assert_array_equal(scale[:, :groups], expected.scale)
    assert not scale[:, groups:].any()


@pytest.mark.parametrize("columns", [1, 16, 97])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_exact_activations_are_float32(isa: str, columns: int, dtype: type) -> None:
    x = hard_rows(columns, dtype)
    found = prepared_activations(isa, x, kernels.EXACT).view(np.float32)
    np.testing.assert_array_equal(found[:, :columns], x.astype(np.float32))
    assert not found[:, columns : -(-columns // BLOCK) * BLOCK].any()


@pytest.mark.parametrize("columns", [1, 191, 192, 193, 577])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_activations_by_superblocks_are_the_twins(isa: str, columns: int, dtype: type) -> None:
    x = hard_rows(columns, dtype)
    found = prepared_activations(isa, x, kernels.SUPERBLOCKS)
    expected = reference.quantize_superblocks(x)
    held, supers = -(-columns // BLOCK) * BLOCK, -(-columns // 192)
    q = found[:, : supers * 192].view(np.int8).reshape(len(x), -1, 192)
    assert held <= supers * 192
    assert (q == expected.q).all()
    after = np.ascontiguousarray(found[:, supers * 192 : supers * 200])
    assert (after[:, : 4 * supers].view(np.int32) == -128 * q.astype(np.int32).sum(axis=2)).all()
    scale = np.ascontiguousarray(after[:, 4 * supers :]).view(np.float32)
    np.testing.assert_array_equal(scale, expected.scale)
