"""The operators: the format's numbers, on every path torch knows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.library import opcheck

from tritllm import TritTensor, encode
from tritllm.ops import cpu_kernels, torch_ops
from tritllm.ops.numpy_arrays import NUMPY_OF_TORCH, torch_parts

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((24, 80), (7, 1), (5, 83), (33, 48), (1, 16))


def matrix(rows: int, columns: int, depth: int, seed: int = 0) -> TritTensor:
    rng = np.random.default_rng(seed)
    return encode(rng.standard_normal((rows, columns)).astype(np.float32) * 0.1, depth)


def arguments(tensor: TritTensor, planes: int | None = None) -> tuple[torch.Tensor, ...]:
    weight, scale, codebook = torch_parts(tensor)
    planes = planes or tensor.depth
    return weight[:planes], scale, codebook[planes - 1]


def activations(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_dequantize_gives_the_codecs_bits(shape, depth):
    tensor = matrix(*shape, depth)
    for planes in range(1, depth + 1):
        for dtype in DTYPES:
            ours = torch_ops.dequantize(*arguments(tensor, planes), shape[1], dtype)
            expected = tensor.decode(planes, NUMPY_OF_TORCH[dtype]).view(np.uint8)
            np.testing.assert_array_equal(ours.view(torch.uint8).numpy(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_equals_a_dequantized_layer(dtype):
    tensor = matrix(24, 83, 3)
    weight = torch_ops.dequantize(*arguments(tensor), 83, dtype)
    bias = activations(24, dtype=dtype)
    for shape in ((83,), (1, 83), (2, 5, 83), (0, 83)):
        x = activations(*shape, dtype=dtype)
        for b in (None, bias):
            ours = torch_ops.linear(x, *arguments(tensor), b)
            assert torch.equal(ours, torch.nn.functional.linear(x, weight, b))
            assert ours.dtype == dtype


def test_blocks_of_rows_change_nothing_but_the_memory(monkeypatch):
    tensor = matrix(33, 48, 2)
    x, bias = activations(3, 48), activations(33)
    whole = torch_ops.linear(x, *arguments(tensor), bias)
    weight = torch_ops.dequantize(*arguments(tensor), 48, torch.float16)
    monkeypatch.setattr(torch_ops, "BLOCK_WEIGHTS", 48 * 8)
    torch.testing.assert_close(torch_ops.linear(x, *arguments(tensor), bias), whole)
    assert torch.equal(torch_ops.dequantize(*arguments(tensor), 48, torch.float16), weight)


def test_a_wrong_width_is_refused():
    with pytest.raises(ValueError, match="x has 64 features"):
        torch_ops.linear(activations(2, 64), *arguments(matrix(24, 80, 2)))


def test_opcheck():
    tensor = matrix(24, 83, 2)
    x, bias = activations(2, 3, 83), activations(24)
    opcheck(torch_ops.linear, (x, *arguments(tensor), bias))
    opcheck(torch_ops.linear, (x.bfloat16(), *arguments(tensor), None))
    opcheck(torch_ops.dequantize, (*arguments(tensor), 83, torch.float16))


def test_compile_in_one_graph():
    tensor = matrix(24, 83, 2)
    parts = arguments(tensor)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def block(x: torch.Tensor) -> torch.Tensor:
        return torch_ops.linear(x.sin(), *parts).relu()

    for rows in (1, 4, 7):
        x = activations(rows, 83)
        assert torch.equal(block(x), torch_ops.linear(x.sin(), *parts).relu())


# --- The native kernels ---------------------------------------------------------------------------


def prepared(tensor: TritTensor) -> torch.Tensor:
    return cpu_kernels.prepare(*arguments(tensor), tensor.in_features)


@pytest.mark.parametrize("mode", ["int8", "exact"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_native_agrees_with_torch(native, mode, dtype, depth):
    native(mode)
    tensor = matrix(33, 208, depth)
    memory = prepared(tensor)
    bias = activations(33, dtype=dtype)
    for shape in ((208,), (1, 208), (3, 7, 208), (40, 208)):
        x = activations(*shape, dtype=dtype)
        ours = torch_ops.linear_prepared(x, memory, 33, bias)
        assert ours.shape == (*shape[:-1], 33)
        assert ours.dtype == dtype
        exact = torch_ops.linear(x.double().float(), *arguments(tensor), bias.float())
        bound = {"int8": 1e-2, "exact": 1e-5}[mode] + {2: 5e-3, 4: 0}[dtype.itemsize]
        assert (ours.float() - exact).norm() <= bound * exact.norm()


def test_native_takes_strided_and_empty_input(native):
    native("exact")
    tensor = matrix(33, 208, 2)
    memory = prepared(tensor)
    x = activations(208, 5).t()
    torch.testing.assert_close(
        torch_ops.linear_prepared(x, memory, 33), torch_ops.linear(x, *arguments(tensor))
    )
    assert torch_ops.linear_prepared(activations(0, 208), memory, 33).shape == (0, 33)


def test_native_survives_huge_activations(native):
    native("int8")
    y = torch_ops.linear_prepared(torch.full((2, 208), 1e5), prepared(matrix(33, 208, 4)), 33)
    assert y.isfinite().all()


def test_native_refuses_what_does_not_fit(native):
    native("int8")
    memory = prepared(matrix(33, 208, 2))
    with pytest.raises(ValueError, match="not prepared for 34 rows"):
        torch_ops.linear_prepared(activations(1, 208), memory, 34)
    with pytest.raises(ValueError, match="33 rows and 192 features"):
        torch_ops.linear_prepared(activations(1, 192), memory, 33)
    with pytest.raises(TypeError, match="float64"):
        torch_ops.linear_prepared(activations(1, 208).double(), memory, 33)


def test_native_opcheck_and_compile(native):
    native("int8")
    tensor = matrix(33, 208, 2)
    memory = prepared(tensor)
    x = activations(2, 208)
    opcheck(torch_ops.linear_prepared, (x, memory, 33, activations(33)))
    compiled = torch.compile(
        lambda x: torch_ops.linear_prepared(x * 2, memory, 33), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(x), torch_ops.linear_prepared(x * 2, memory, 33))


def test_native_gives_the_same_for_any_number_of_threads(native):
    native("int8")
    tensor = matrix(64, 208, 3)
    memory, x = prepared(tensor), activations(5, 208)
    one = torch_ops.linear_prepared(x, memory, 64)
    torch.set_num_threads(2)
    try:
        assert torch.equal(torch_ops.linear_prepared(x, memory, 64), one)
        assert torch.equal(prepared(tensor), memory)
    finally:
        torch.set_num_threads(1)


def test_mode_is_checked(monkeypatch):
    from tritllm.errors import TritError

    cpu_kernels.mode.cache_clear()
    monkeypatch.setenv("TRITLLM_LINEAR", "fast")
    with pytest.raises(TritError, match="TRITLLM_LINEAR=fast is not one of int8, exact, torch"):
        cpu_kernels.mode()
    monkeypatch.setenv("TRITLLM_LINEAR", "torch")
    assert cpu_kernels.mode() == "torch"
    assert not cpu_kernels.available()
    assert "TRITLLM_LINEAR=torch" in cpu_kernels.describe()
    cpu_kernels.mode.cache_clear()
