"""bfloat16 layers of many rows in float32: as exact as torch or nearer, and torch's own else."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from tritllm.integrations.transformers import load_model, widened_linear
from tritllm.integrations.transformers.native_step.watch import kind_of, watch
from tritllm.integrations.transformers.widened_linear import WidenedLinear, widen_linears


@pytest.fixture(params=[False, True], ids=["torch's", "without instructions"], autouse=True)
def slow(request, monkeypatch):
    """Whether the processor has no products of bfloat16."""
    monkeypatch.setattr(widened_linear, "has_bfloat16_products", lambda: not request.param)
    return request.param


@pytest.fixture
def calls(monkeypatch):
    """Shapes of what was computed in float32."""
    found = []
    real = widened_linear.linear_in_float32

    def counted(x, weight, bias):
        found.append(tuple(x.shape))
        return real(x, weight, bias)

    monkeypatch.setattr(widened_linear, "linear_in_float32", counted)
    return found


def widened(bias: bool = True, dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(96, 700, bias=bias), nn.ReLU()).to(dtype)
    widen_linears(model)
    return model


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("part", [96, 96 * 250, 1 << 20])  # of one row, of some, of all
def test_at_least_as_exact_as_torch(monkeypatch, slow, calls, bias, part):
    monkeypatch.setattr(widened_linear, "_PART", part // torch.get_num_threads())
    layer = widened(bias)[0]
    x = torch.randn(2, 9, 96).bfloat16()
    ours = layer(x)
    theirs = nn.functional.linear(x, layer.weight, layer.bias)
    given = [None if t is None else t.double() for t in (layer.weight, layer.bias)]
    exact = nn.functional.linear(x.double(), *given)
    assert calls == ([(2, 9, 96)] if slow else [])
    assert ours.dtype is torch.bfloat16
    assert ours.shape == theirs.shape
    assert (ours - exact).norm() <= 1.001 * (theirs - exact).norm()
    if slow:  # but for a tie in float32's last bits, the nearest of all bfloat16 numbers
        assert (ours != exact.bfloat16()).float().mean() < 0.005


@torch.no_grad()
def test_what_torch_computes(calls):
    """Few rows, other dtypes, autocast."""
    layer = widened()[0]
    layer(torch.randn(7, 96).bfloat16())
    assert type(widened(dtype=torch.float32)[0]) is nn.Linear
    widened()[0].float()(torch.randn(9, 96))
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(9, 96).bfloat16())
    assert not calls


def test_gradients_are_torchs(slow, calls):
    layer = widened()[0]
    layer(torch.randn(9, 96).bfloat16()).sum().backward()
    assert layer.weight.grad.any()
    layer.requires_grad_(False)
    x = torch.randn(9, 96).bfloat16().requires_grad_()
    layer(x).sum().backward()
    assert x.grad.any()
    assert not calls
    layer(x.detach())
    assert len(calls) == slow


def test_copies_pickles_and_other_kinds(slow):
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 8), Own(8, 8)).bfloat16()
    widen_linears(model)
    assert type(model[1]) is Own
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model[:1]))):
        assert isinstance(other[0], nn.Linear)
        assert isinstance(other[0], WidenedLinear) == slow
        assert torch.equal(other[0].weight, model[0].weight)


@torch.no_grad()
def test_a_watched_layer_computes_as_before(slow, calls):
    """Of a decoder with a native step; it is torch's linear layer to whoever asks for its kind."""
    layer = widened()[0]
    watch(layer)
    layer(torch.randn(9, 96).bfloat16())
    assert len(calls) == slow
    assert kind_of(layer) is nn.Linear


@torch.no_grad()
def test_layers_that_a_packed_model_keeps(tiny, slow, calls, steps):
    """The output layer, for all logits of a text and not for a token's."""
    model = load_model(tiny("llama", 2) / "packed", dtype="bfloat16")
    ids = torch.arange(3, 19)[None]
    logits = model(ids).logits
    assert calls == ([(1, 16, 48)] if slow else [])
    hidden = model.model(ids).last_hidden_state
    exact = hidden.double() @ model.lm_head.weight.double().t()
    assert (logits - exact).norm() < 3e-3 * exact.norm()
    model(ids[:, :1])
    assert len(calls) == slow
    model.dequantize(torch.bfloat16)
    assert torch.isfinite(model(ids).logits).all()
