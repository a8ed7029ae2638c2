"""The Triton kernels in triton's interpreter, on the CPU: numbers, tails, parts, refusals.

What they are compiled to for GPUs is in tests/benchmarks/test_gpu_code.py. bfloat16 products of
tiles are wrong in the interpreter, so the matrix kernel runs with float16 and float32 there.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tritllm import TritTensor, encode
from tritllm.ops import backends, portable
from tritllm.ops.backends import cuda
from tritllm.ops.definitions import Packed, dequantize, linear
from tritllm.ops.numpy_arrays import torch_parts
from tritllm.ops.triton_kernels import layout
from tritllm.products import GROUPS

pytest.importorskip("triton", reason="needs triton")

BOUND = 2e-3  # of the largest result, against float32 products with the dequantized weights
SHAPES = ((16, 16), (1, 5), (33, 83), (40, 160), (17, 1056))


def packed(rows: int, columns: int, depth: int, part_rows: tuple[int, ...] | None = None) -> Packed:
    rng = np.random.default_rng(rows + columns)
    parts = [
        encode(rng.standard_normal((n, columns)).astype(np.float32) * 0.1 * (i + 1), depth)
        for i, n in enumerate(part_rows or (rows,))
    ]
    planes, scale, codebook = zip(*(torch_parts(part) for part in parts))
    steps = torch.stack([own[-1] for own in codebook])
    return Packed(
        torch.cat(planes, 1), torch.cat(scale), steps if part_rows else steps[0], columns, part_rows
    )


def product(x: torch.Tensor, w: Packed, bias: torch.Tensor | None = None) -> torch.Tensor:
    made = cuda.prepare(w)
    depth, rows = w.planes.shape[:2]
    return cuda.linear_prepared(
        x, made.memory, w.steps, made.layout, depth, w.in_features, rows, GROUPS, bias, w.part_rows
    )


def expected(x: torch.Tensor, w: Packed, bias: torch.Tensor | None = None) -> torch.Tensor:
    weight = dequantize(*w[:4], torch.float32, w.part_rows)
    return torch.nn.functional.linear(x.float(), weight, None if bias is None else bias.float())


def check(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    rounding = torch.finfo(dtype).eps if dtype is torch.bfloat16 else 0  # of the result itself
    assert found.dtype is dtype
    assert found.shape == wanted.shape
    error = (found.float() - wanted).abs().max() / wanted.abs().max()
    assert error < BOUND + rounding


def activations(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_memory_holds_every_level_and_entry(shape: tuple[int, int], depth: int) -> None:
    w = packed(*shape, depth)
    memory = layout.prepare(w)
    assert memory.numel() == layout.size(*shape, depth)
    level, entry = layout.read(memory, shape, depth)
    assert torch.equal(level, portable.levels(w.planes, shape[1]))
    assert torch.equal(entry, portable.entries(w.scale, shape[1]))


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    w = packed(70, 48, 4)
    whole = layout.prepare(w)
    monkeypatch.setattr(layout, "BLOCK_WEIGHTS", 48 * 16)
    assert torch.equal(layout.prepare(w), whole)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("batch", "dtype"),
    [(1, torch.float16), (1, torch.bfloat16), (3, torch.float32), (5, torch.float16),
     (5, torch.float32)],
)  # fmt: skip
def test_products_with_tails(batch: int, dtype: torch.dtype, depth: int) -> None:
    w = packed(33, 83, depth)
    x, bias = activations(batch, 83, dtype=dtype), activations(33, dtype=dtype)
    check(product(x, w, bias), expected(x, w, bias), dtype)


@pytest.mark.parametrize("batch", [4, 6])
def test_every_level_and_entry_counts(batch: int) -> None:
    """A weight or a scale read from a wrong place gives another product."""
    rng = np.random.default_rng(0)
    tensor = TritTensor(
        rng.integers(0, 243, (4, 20, 16), np.uint8),
        rng.integers(0, 243, (20, 3), np.uint8),
        np.sort(rng.random((4, 27), np.float32), axis=1),
        80,
    )
    planes, scale, codebook = torch_parts(tensor)
    w = Packed(planes, scale, codebook[-1], 80)
    # One column a row of x: the product is a column of W. Together all places within a group.
    for begin in range(0, 80 - batch + 1, 12):
        columns = torch.arange(begin, begin + batch)
        x = torch.nn.functional.one_hot(columns, 80).float()
        torch.testing.assert_close(product(x, w), expected(x, w), rtol=1e-4, atol=1e-4)


def test_the_groups_are_split_among_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    from tritllm.ops.triton_kernels import launch

    seen = []
    split = launch._split_groups
    monkeypatch.setattr(launch, "_processors", lambda device: 3)
    monkeypatch.setattr(
        launch, "_split_groups", lambda *a: seen.append((a[1], split(*a))) or split(*a)
    )
    w = packed(20, 200, 2)
    x, bias = activations(5, 200, dtype=torch.float16), activations(20, dtype=torch.float16)
    check(product(x, w, bias), expected(x, w, bias), torch.float16)
    assert seen == [(13, 4)]  # four programs for 13 groups, of which the last has one


@pytest.mark.parametrize("batch", [1, 5])
def test_parts_keep_a_codebook_each(batch: int) -> None:
    w = packed(40, 64, 2, (19, 5, 16))
    x = activations(batch, 64)
    check(product(x, w), expected(x, w), torch.float32)
    swapped = w._replace(steps=w.steps.flip(0))
    assert not torch.allclose(product(x, swapped), expected(x, w))


def test_more_parts_than_there_is_room_for_are_left_to_torch() -> None:
    assert cuda.prepare(packed(10, 16, 1, (1,) * 10)) is None
    assert cuda.prepare(packed(9, 16, 1, (1,) * 9)) is not None


def test_shapes_of_activations() -> None:
    w = packed(16, 32, 1)
    for shape in ((32,), (2, 1, 32), (0, 32)):
        x = activations(*shape)
        torch.testing.assert_close(product(x, w), linear(x, *w[:3]), rtol=1e-4, atol=1e-4)
    x = activations(2, 32).double()
    assert product(x, w).dtype is torch.float64
    assert torch.equal(product(x.float()[:, ::1], w), product(x.float(), w))
    strided = activations(32, 2).t()
    torch.testing.assert_close(product(strided, w), expected(strided, w), rtol=1e-4, atol=1e-4)


def test_refusals() -> None:
    w = packed(16, 32, 1)
    made = cuda.prepare(w)
    call = (w.steps, made.layout, 1, 32, 16, GROUPS)
    with pytest.raises(ValueError, match="of depth 2"):
        cuda.linear_prepared(
            activations(1, 32), made.memory, w.steps, made.layout, 2, 32, 16, GROUPS
        )
    with pytest.raises(ValueError, match="layout 7"):
        cuda.linear_prepared(activations(1, 32), made.memory, w.steps, 7, 1, 32, 16, GROUPS)
    with pytest.raises(ValueError, match="x has 16 features"):
        cuda.linear_prepared(activations(1, 16), made.memory, *call)
    with pytest.raises(TypeError, match="int32"):
        cuda.linear_prepared(torch.ones(1, 32, dtype=torch.int32), made.memory, *call)
    for tensor, name in ((0, "weight"), (1, "weight_scale")):
        damaged = list(w)
        damaged[tensor] = torch.full_like(w[tensor], 243)
        with pytest.raises(ValueError, match=f"{name}: byte 243 is not five trits"):
            cuda.prepare(Packed(*damaged))
    damaged = packed(4, 83, 1)
    damaged.planes[0, 2, -1] += 27  # of the last byte, trits 0 to 2 are weights
    with pytest.raises(ValueError, match="weight: padding after trit 83 of a row is not zero"):
        cuda.prepare(damaged)


def test_without_a_gpu_torch_computes() -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    assert not cuda.available()
    assert cuda.describe() == (
        "torch, which decodes the weights at every call: torch sees no CUDA device"
    )
    assert cuda.BACKEND in backends.BACKENDS
