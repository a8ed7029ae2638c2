"""Matrices and vectors in training within modules of torch and transformers."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tritllm.codec import encode
from tritllm.training.install import Installed
from tritllm.training.straight_through import TrainedMatrix, TrainedVector


def some_layers() -> tuple[nn.Module, Installed]:
    """Linear [20, 32], norm, Conv1D [32, 20], each with its bias."""
    torch.manual_seed(0)
    root = nn.Sequential(nn.Linear(32, 20), nn.LayerNorm(20), Conv1D(32, 20))
    nn.init.normal_(root[2].weight)
    weights = {"0.weight": root[0].weight, "2.weight": root[2].weight.T}
    matrices = {}
    for name, weight in weights.items():
        source = np.ascontiguousarray(weight.detach().numpy())
        matrices[name] = TrainedMatrix(encode(source, 2), source)
    vectors = {n: TrainedVector(p, torch.float16) for n, p in root.named_parameters() if p.ndim < 2}
    return root, Installed(root, matrices, vectors, frozenset({"2.weight"}))


def expected(installed: Installed, x: torch.Tensor) -> torch.Tensor:
    value = {n: installed.value(n) for n in ("0.weight", "0.bias", "1.weight", "1.bias")}
    h = nn.functional.linear(x, value["0.weight"], value["0.bias"])
    h = nn.functional.layer_norm(h, (20,), value["1.weight"], value["1.bias"])
    return h @ installed.value("2.weight") + installed.value("2.bias")


def test_modules_compute_with_what_is_in_training():
    root, installed = some_layers()
    x = torch.randn(5, 32)
    torch.testing.assert_close(root(x), expected(installed, x))
    before = root(x)
    with torch.no_grad():
        for parameter in installed.parameters():
            parameter.add_(0.3)
    assert not torch.allclose(root(x), before)
    torch.testing.assert_close(root(x), expected(installed, x))


def test_gradients_reach_everything_in_training():
    root, installed = some_layers()
    root(torch.randn(5, 32)).square().sum().backward()
    assert {n.split(".")[-1] for n, _ in installed.named_parameters()} == {
        "latent", "log_steps", "value",
    }  # fmt: skip
    assert all(parameter.grad.abs().sum() > 0 for parameter in installed.parameters())


def test_what_is_removed_leaves_ordinary_parameters_with_the_last_values():
    root, installed = some_layers()
    with torch.no_grad():
        for parameter in installed.parameters():
            parameter.add_(0.3)
    x = torch.randn(5, 32)
    wanted = expected(installed, x)
    installed.remove()
    assert {n for n, _ in root.named_parameters()} == {
        f"{i}.{leaf}" for i in range(3) for leaf in ("weight", "bias")
    }
    torch.testing.assert_close(root(x), wanted)
    with torch.no_grad():
        next(installed.parameters()).add_(1)
    torch.testing.assert_close(root(x), wanted)
