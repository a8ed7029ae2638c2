"""Gradients through packed layers: those of the dequantized layer, in every mode of torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tritllm import encode, native
from tritllm.ops import portable
from tritllm.ops.trit_linear import TritLinear

MODES = ["torch"] + (["exact", "int8"] if native.available() else [])


def layers(mode: str, bias: bool = True) -> tuple[TritLinear, torch.nn.Linear]:
    """A packed layer [24, 83] and the float layer of the same numbers."""
    rng = np.random.default_rng(0)
    tensor = encode(rng.standard_normal((24, 83)).astype(np.float32) * 0.1, 3)
    values = torch.linspace(-1, 1, 24) if bias else None
    plain = torch.nn.Linear(83, 24, bias=bias).requires_grad_(False)
    plain.weight.copy_(torch.from_numpy(tensor.decode()))
    if bias:
        plain.bias.copy_(values)
    return TritLinear.from_tensor(tensor, values, mode=mode), plain


def input_of(*shape: int) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(2))
    return x.requires_grad_()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(83,), (1, 83), (2, 5, 83)], ids=str)
def test_gradients_are_the_dequantized_layers(mode, shape):
    packed, plain = layers(mode)
    x, dy = input_of(*shape), torch.linspace(-1, 1, 24).expand(*shape[:-1], 24)
    for layer in (packed, plain):
        layer.bias.requires_grad_()
    (ours, bias), (theirs, other) = (
        torch.autograd.grad(layer(x), (x, layer.bias), dy) for layer in (packed, plain)
    )
    assert torch.equal(ours, theirs)
    assert torch.equal(bias, other)


class Calls(TorchDispatchMode):
    """The names of the operators that are called within it."""

    def __init__(self) -> None:
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", MODES)
def test_the_planes_are_read_only_where_no_memory_was_prepared(mode):
    """So a training process does not hold the file's pages beside the prepared memory."""
    packed, _ = layers(mode)
    x = input_of(2, 83)
    with Calls() as calls:
        packed(x).sum().backward()
    decoded = {name for name in calls.names if name.startswith("tritllm::dequantize")}
    assert decoded == {"tritllm::dequantize" + ("" if mode == "torch" else "_prepared")}


@pytest.mark.parametrize("mode", MODES)
def test_blocks_of_a_layers_weights(mode, monkeypatch):
    monkeypatch.setattr(portable, "BLOCK_WEIGHTS", 83 * 7)
    packed, _ = layers(mode)
    for planes in (3, 1):
        packed.planes = planes
        rows, blocks = zip(*packed.weights().blocks(torch.bfloat16))
        assert [(span.start, span.stop) for span in rows] == [(0, 7), (7, 14), (14, 21), (21, 24)]
        expected = torch.from_numpy(packed.tensor().decode(planes)).bfloat16()
        assert torch.equal(torch.cat(blocks), expected)
    packed.weight.fill_(121)  # what was prepared of the layer is not what it holds any more
    assert not any(block.any() for _, block in packed.weights().blocks(torch.float32))


@pytest.mark.parametrize("mode", MODES)
def test_checkpointing_compile_and_second_derivatives(mode):
    packed, plain = layers(mode)
    x = input_of(3, 83)

    def second(layer):
        (first,) = torch.autograd.grad((layer(x) ** 2).sum(), x, create_graph=True)
        return torch.autograd.grad((first**2).sum(), x)[0]

    bound = {"rtol": 2e-2, "atol": 2e-1} if mode == "int8" else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(second(packed), second(plain), **bound)
    expected = torch.autograd.grad(plain(x.sin()).sum(), x)[0]
    compiled = torch.compile(lambda x: packed(x.sin()), fullgraph=True, backend="aot_eager")
    for run in (compiled, lambda x: checkpoint(lambda x: packed(x.sin()), x, use_reentrant=False)):
        torch.testing.assert_close(torch.autograd.grad(run(x).sum(), x)[0], expected)


@pytest.mark.parametrize("mode", MODES)
def test_forward_mode_torch_func_and_vmap(mode):
    packed, plain = layers(mode)
    x = input_of(3, 83).detach()
    with torch.autograd.forward_ad.dual_level(), torch.no_grad():
        dual = torch.autograd.forward_ad.make_dual(x, x.cos())
        tangent = torch.autograd.forward_ad.unpack_dual(packed(dual)).tangent
    torch.testing.assert_close(tangent, plain(x.cos()) - plain.bias)
    for transform in (
        lambda f: torch.func.grad(lambda x: f(x).sum())(x),
        lambda f: torch.func.jvp(f, (x,), (x.cos(),))[1],
        lambda f: torch.vmap(torch.func.grad(lambda x: f(x).sum()))(x),
    ):
        torch.testing.assert_close(transform(packed), transform(plain))
    assert torch.equal(torch.vmap(packed, in_dims=1, out_dims=1)(x[:, None]), packed(x)[:, None])


def test_in_double_and_under_autocast():
    packed, plain = layers("torch")
    packed.double()
    x = input_of(2, 83).detach().double().requires_grad_()
    assert packed(x).dtype == torch.float64
    assert torch.autograd.gradcheck(packed, (x,), check_forward_ad=True)
    packed.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(packed(x.float()), plain(x.float()))


def test_frozen_steps_are_refused():
    packed, _ = layers("torch")
    packed.weight_codebook.requires_grad_()
    with pytest.raises(NotImplementedError, match="packed weights are frozen"):
        packed(input_of(1, 83))
