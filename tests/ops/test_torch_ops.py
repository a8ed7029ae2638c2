"""The operators: the format's numbers, on every path torch knows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

from tritllm import TritTensor, encode, native
from tritllm.errors import TritError
from tritllm.ops import backends, definitions, portable
from tritllm.ops import mode as modes
from tritllm.ops.backends import cpu
from tritllm.ops.dtypes import NUMPY_OF_TORCH
from tritllm.ops.numpy_arrays import torch_parts
from tritllm.ops.trit_linear import TritLinear

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
            ours = definitions.dequantize(*arguments(tensor, planes), shape[1], dtype)
            expected = tensor.decode(planes, NUMPY_OF_TORCH[dtype]).view(np.uint8)
            np.testing.assert_array_equal(ours.view(torch.uint8).numpy(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_equals_a_dequantized_layer(dtype):
    tensor = matrix(24, 83, 3)
    weight = definitions.dequantize(*arguments(tensor), 83, dtype)
    bias = activations(24, dtype=dtype)
    for shape in ((83,), (1, 83), (2, 5, 83), (0, 83)):
        x = activations(*shape, dtype=dtype)
        for b in (None, bias):
            ours = definitions.linear(x, *arguments(tensor), b)
            assert torch.equal(ours, torch.nn.functional.linear(x, weight, b))
            assert ours.dtype == dtype


def test_blocks_of_rows_change_nothing_but_the_memory(monkeypatch):
    tensor = matrix(33, 48, 2)
    x, bias = activations(3, 48), activations(33)
    whole = definitions.linear(x, *arguments(tensor), bias)
    weight = definitions.dequantize(*arguments(tensor), 48, torch.float16)
    monkeypatch.setattr(portable, "BLOCK_WEIGHTS", 48 * 8)
    torch.testing.assert_close(definitions.linear(x, *arguments(tensor), bias), whole)
    assert torch.equal(definitions.dequantize(*arguments(tensor), 48, torch.float16), weight)


def test_a_wrong_width_is_refused():
    with pytest.raises(ValueError, match="x has 64 features"):
        definitions.linear(activations(2, 64), *arguments(matrix(24, 80, 2)))


def test_opcheck():
    tensor = matrix(24, 83, 2)
    x, bias = activations(2, 3, 83), activations(24)
    opcheck(definitions.linear, (x, *arguments(tensor), bias))
    opcheck(definitions.linear, (x.bfloat16(), *arguments(tensor), None))
    opcheck(definitions.dequantize, (*arguments(tensor), 83, torch.float16))


def test_compile_in_one_graph():
    tensor = matrix(24, 83, 2)
    parts = arguments(tensor)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def block(x: torch.Tensor) -> torch.Tensor:
        return definitions.linear(x.sin(), *parts).relu()

    for rows in (1, 4, 7):
        x = activations(rows, 83)
        assert torch.equal(block(x), definitions.linear(x.sin(), *parts).relu())


# --- The native kernels ---------------------------------------------------------------------------


MODES = ("int8", "exact", "per-token")
needs_kernels = pytest.mark.skipif(not native.available(), reason="no native kernels")


class Memory:
    """A prepared matrix, and `linear_prepared` with it."""

    def __init__(self, tensor: TritTensor, mode: str = "int8", planes_apart: bool = False) -> None:
        self.tensor, self.arithmetic = tensor, modes.ARITHMETIC[mode]
        self.parts = arguments(tensor)
        made = backends.prepare(definitions.Packed(*self.parts, tensor.in_features), planes_apart)
        self.memory, self.layout = made.memory, made.layout

    def arguments(self, x, bias=None, **changed):
        values = {
            "x": x, "prepared": self.memory, "steps": self.parts[2], "layout": self.layout,
            "depth": self.tensor.depth, "in_features": self.tensor.in_features,
            "out_features": self.tensor.shape[0], "arithmetic": self.arithmetic, "bias": bias,
            "part_rows": None, "planes": None, "scale": None,
        }  # fmt: skip
        return tuple((values | changed).values())

    def decoding(self, dtype, **changed):
        """Arguments of `dequantize_prepared`, for all rows and planes."""
        values = {
            "prepared": self.memory, "steps": self.parts[2], "layout": self.layout,
            "depth": self.tensor.depth, "in_features": self.tensor.in_features,
            "out_features": self.tensor.shape[0], "dtype": dtype, "begin": 0,
            "end": self.tensor.shape[0],
        }  # fmt: skip
        return tuple((values | changed).values())

    def __call__(self, x, bias=None, **changed):
        return definitions.linear_prepared(*self.arguments(x, bias, **changed))


@needs_kernels
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_native_agrees_with_torch(mode, dtype, depth):
    tensor = matrix(33, 208, depth)
    memory = Memory(tensor, mode)
    bias = activations(33, dtype=dtype)
    for shape in ((208,), (1, 208), (3, 7, 208), (40, 208)):
        x = activations(*shape, dtype=dtype)
        ours = memory(x, bias)
        assert ours.shape == (*shape[:-1], 33)
        assert ours.dtype == dtype
        exact = definitions.linear(x.double().float(), *arguments(tensor), bias.float())
        bound = {"int8": 1e-2, "per-token": 1.5e-2, "exact": 1e-5}[mode] + {2: 5e-3, 4: 0}[
            dtype.itemsize
        ]
        assert (ours.float() - exact).norm() <= bound * exact.norm()


@needs_kernels
def test_native_takes_strided_empty_and_double_input():
    tensor = matrix(33, 208, 2)
    memory = Memory(tensor, "exact")
    x = activations(208, 5).t()
    expected = definitions.linear(x, *arguments(tensor))
    torch.testing.assert_close(memory(x), expected)
    assert memory(activations(0, 208)).shape == (0, 33)
    bias = activations(66)[::2]
    torch.testing.assert_close(memory(x, bias), expected + bias)
    torch.testing.assert_close(memory(x, bias.double()), expected + bias)
    assert torch.equal(memory(x.double(), bias.double()), memory(x.contiguous(), bias).double())


@needs_kernels
@pytest.mark.parametrize("planes_apart", [False, True])
def test_prepared_memory_is_decoded(planes_apart):
    memory = Memory(matrix(33, 208, 3), planes_apart=planes_apart)
    opcheck(definitions.dequantize_prepared, memory.decoding(torch.float16))
    for dtype in (*DTYPES, torch.float64):
        for planes in (1, 3) if planes_apart else (3,):
            whole = definitions.dequantize(*arguments(memory.tensor, planes), 208, dtype)
            steps = arguments(memory.tensor, planes)[2]
            for begin, end in ((0, 33), (5, 20), (7, 7)):
                ours = definitions.dequantize_prepared(
                    *memory.decoding(dtype, steps=steps, depth=planes, begin=begin, end=end)
                )
                assert torch.equal(ours, whole[begin:end])
    for wrong in (
        {"begin": -1}, {"end": 34}, {"begin": 9, "end": 8}, {"depth": 4},
        {"layout": memory.layout + 1},
        {"in_features": 207}, {"out_features": 34}, {"steps": memory.parts[2][:-1]},
        {"prepared": memory.memory[:-64]}, {"prepared": memory.memory[64:]},
        {"prepared": memory.memory[1:]}, {"prepared": memory.memory.view(torch.int8)},
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError)):
            definitions.dequantize_prepared(*memory.decoding(torch.float32, **{"end": 5} | wrong))


@needs_kernels
def test_native_survives_huge_activations():
    y = Memory(matrix(33, 208, 4))(torch.full((2, 208), 1e5))
    assert y.isfinite().all()


@needs_kernels
def test_native_opcheck_and_compile():
    memory = Memory(matrix(33, 208, 2))
    x = activations(2, 208)
    opcheck(definitions.linear_prepared, memory.arguments(x, activations(33)))
    compiled = torch.compile(lambda x: memory(x * 2), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), memory(x * 2))


@needs_kernels
def test_native_gives_the_same_for_any_number_of_threads():
    tensor = matrix(64, 208, 3)
    memory, x = Memory(tensor), activations(5, 208)
    one = memory(x)
    torch.set_num_threads(2)
    try:
        assert torch.equal(memory(x), one)
        assert torch.equal(Memory(tensor).memory, memory.memory)
    finally:
        torch.set_num_threads(1)


# --- What is refused, before memory is touched ----------------------------------------------------

WRONG = {
    "x": lambda x: st.sampled_from([
        x[..., :-1], x.int(), x.to(torch.complex64), x[0, 0], x.new_empty(0), x.bool(),
    ]),
    "prepared": lambda p: st.sampled_from([
        p[:-64], p[:64], p[:0], p[64:], p[1:], p.view(torch.int8), p.view(torch.float32),
        p.clone()[::2],
        torch.zeros_like(p), p.flip(0), torch.cat([p[:1], p])[1:],
    ]),
    "steps": lambda s: st.sampled_from([s[:-1], s[:0], torch.stack([s, s])]),
    "layout": lambda v: st.sampled_from([0, v + 2**32, v + 2**31, v - 2**32])
    | st.integers(-(2**40), 2**40).filter(lambda n: n != v),
    "depth": lambda v: st.sampled_from([0, v + 2**32, v + 2**31, v - 2**32])
    | st.integers(-(2**40), 2**40).filter(lambda n: n != v),
    "in_features": lambda v: st.sampled_from([0, v + 2**32, v + 2**31, v - 2**32])
    | st.integers(-(2**40), 2**40).filter(lambda n: n != v),
    "out_features": lambda v: st.sampled_from([0, v + 2**32, v + 2**31, v - 2**32])
    | st.integers(-(2**40), 2**40).filter(lambda n: n != v),
    "arithmetic": lambda _: st.sampled_from([-1, 2, 4, 2**31]),
    "bias": lambda b: st.sampled_from([b[:-1], b[:0], b.int(), b[0], b[None], torch.cat([b, b])]),
    "part_rows": lambda _: st.lists(st.integers(-3, 40), max_size=4),
}  # fmt: skip


@needs_kernels
@given(data=st.data())
def test_a_wrong_argument_is_an_error(data):
    memory = Memory(matrix(33, 208, 2))
    names = ("x", "prepared", "steps", "layout", "depth", "in_features", "out_features",
             "arithmetic", "bias", "part_rows", "planes", "scale")  # fmt: skip
    right = dict(zip(names, memory.arguments(activations(2, 208), activations(33))))
    name = data.draw(st.sampled_from(sorted(WRONG)))
    wrong = data.draw(WRONG[name](right[name]))
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        definitions.linear_prepared(*(right | {name: wrong}).values())


@needs_kernels
def test_memory_that_was_freed_or_lies_is_an_error():
    memory, x = Memory(matrix(33, 208, 2)), activations(1, 208)
    other = Memory(matrix(33, 208, 3)).memory
    with pytest.raises(ValueError, match=r"is not that of a matrix \[33, 208\] of depth 2"):
        memory(x, prepared=other[: memory.memory.numel()])
    for at in range(64):  # every byte of the header but those that nothing reads
        lying = memory.memory.clone()
        lying[at] ^= 1
        if at >= 56:
            memory(x, prepared=lying)
            continue
        with pytest.raises(ValueError, match="prepared"):
            memory(x, prepared=lying)
    freed = memory.memory.clone()
    freed.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="prepared memory"):
        memory(x, prepared=freed)
    with pytest.raises(NotImplementedError):
        memory(x.to_sparse())


@pytest.mark.parametrize("wrong", ["planes", "scale", "steps", "bias", "part_rows", "dtype"])
def test_portable_tensors_that_do_not_fit_are_an_error(wrong):
    planes, scale, steps = arguments(matrix(24, 80, 2))
    bias, part_rows = None, None
    if wrong == "planes":
        planes = planes[:, :20]
    elif wrong == "scale":
        scale = scale[:, :-1]
    elif wrong == "steps":
        steps = steps[:26]
    elif wrong == "bias":
        bias = torch.zeros(25)
    elif wrong == "part_rows":
        part_rows = [12, 13]
    else:
        planes = planes.float()
    with pytest.raises((ValueError, TypeError)):
        definitions.linear(activations(1, 80), planes, scale, steps, bias, part_rows)


# --- Matrices put together along their rows -------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", [*MODES, "torch"])
def test_put_together_equals_three_layers(mode, dtype, monkeypatch):
    if mode != "torch" and not native.available():
        pytest.skip("no native kernels")
    monkeypatch.setattr(portable, "BLOCK_WEIGHTS", 208 * 20)
    parts = [matrix(rows, 208, 2, seed) for seed, rows in enumerate((48, 16, 23))]
    rows = [part.shape[0] for part in parts]
    each = [arguments(part) for part in parts]
    planes = torch.cat([p for p, _, _ in each], dim=1)
    scale = torch.cat([s for _, s, _ in each])
    steps = torch.stack([s for _, _, s in each])
    bias = activations(sum(rows), dtype=dtype)
    whole = definitions.dequantize(planes, scale, steps, 208, dtype, rows)
    assert torch.equal(whole, torch.cat([definitions.dequantize(*p, 208, dtype) for p in each]))
    for shape in ((208,), (1, 208), (2, 5, 208)):
        x = activations(*shape, dtype=dtype)
        biases = bias.split(rows)
        if mode == "torch":
            ours = definitions.linear(x, planes, scale, steps, bias, rows)
            theirs = [definitions.linear(x, *p, b) for p, b in zip(each, biases)]
        else:
            made = backends.prepare(definitions.Packed(planes, scale, steps, 208, rows))
            ours = definitions.linear_prepared(
                x, made.memory, steps, made.layout, 2, 208, sum(rows), modes.ARITHMETIC[mode],
                bias, rows,
            )  # fmt: skip
            theirs = [Memory(part, mode)(x, b) for part, b in zip(parts, biases)]
        assert torch.equal(ours, torch.cat(theirs, dim=-1))


def test_mode_is_checked(monkeypatch):
    monkeypatch.setenv("TRITLLM_LINEAR", "fast")
    with pytest.raises(
        TritError, match="TRITLLM_LINEAR=fast is not one of int8, exact, per-token, torch"
    ):
        modes.requested()
    monkeypatch.setenv("TRITLLM_LINEAR", "torch")
    assert modes.requested() == "torch"
    assert "TRITLLM_LINEAR=torch" in cpu.describe()
    assert cpu.runs_as_requested()


def test_many_rows_may_be_multiplied_by_superblocks(monkeypatch):
    """TRITLLM_PREFILL decides; where groups are as fast they are taken."""
    from tritllm import products

    weight = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    tensor = encode(weight, 2)
    prepared = products.prepare(tensor)
    layer = TritLinear.from_tensor(tensor, mode="int8")
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))

    def result(asked: str) -> np.ndarray:
        monkeypatch.setenv("TRITLLM_PREFILL", asked)
        cpu.superblock_rows.cache_clear()
        return layer(x).numpy()

    try:
        by = {
            name: products.linear(prepared, x.numpy(), arithmetic=number)
            for name, number in (("groups", products.GROUPS), ("superblocks", products.SUPERBLOCKS))
        }
        assert (result("groups") == by["groups"]).all()
        assert (result("superblocks") == by["superblocks"]).all()
        faster = products.superblock_rows()
        assert (result("auto") == by["superblocks" if 0 < faster <= 64 else "groups"]).all()
        with pytest.raises(TritError, match="TRITLLM_PREFILL=fast is not one of auto, groups"):
            result("fast")
    finally:
        cpu.superblock_rows.cache_clear()
