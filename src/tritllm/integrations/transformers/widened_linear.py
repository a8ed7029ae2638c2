"""bfloat16 layers that compute many rows in float32, on processors without bfloat16 products.

Without such instructions torch takes a bfloat16 matrix apart again for every row or few. Here a
part of the weight is widened once for all rows and stays in the cache meanwhile; the whole is kept
as bfloat16. Products and sums are float32, rounded once.
"""

from __future__ import annotations

import platform
from functools import cache

import torch
from torch import nn
from torch.nn import functional

_LEAST_ROWS = 8  # fewer are as fast in torch
_PART = 256 * 1536  # weights that are widened at a time, for each thread: 1.5 MiB in float32


class WidenedLinear(nn.Linear):  # type: ignore[misc]
    """torch's linear layer. Where gradients, autocast or a compiler are at work it computes as
    torch's does, and for few rows, and once it is cast or moved to another device.
    """

    stock = nn.Linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] to [..., out_features]."""
        if not torch.compiler.is_compiling() and self._is_widened(x):
            return linear_in_float32(x, self.weight, self.bias)
        found: torch.Tensor = super().forward(x)
        return found

    def _is_widened(self, x: torch.Tensor) -> bool:
        if x.numel() < _LEAST_ROWS * self.in_features:
            return False
        given = [x, self.weight, *([] if self.bias is None else [self.bias])]
        return (
            all(t.dtype is torch.bfloat16 and t.device.type == "cpu" for t in given)
            and type(x) is torch.Tensor
            and type(self.weight) is nn.Parameter
            and not (torch.is_grad_enabled() and any(t.requires_grad for t in given))
            and not torch.is_autocast_enabled("cpu")
        )


def linear_in_float32(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """x W^T + bias of x [..., K], W [N, K] and bias [N] of one dtype, computed in float32 and
    rounded to that dtype once; no more than a part of W is float32 at a time.
    """
    rows = x.reshape(-1, x.shape[-1]).float()
    found = x.new_empty(len(rows), len(weight))
    part = max(1, _PART * torch.get_num_threads() // weight.shape[1])
    for begin in range(0, len(weight), part):
        some = slice(begin, begin + part)
        own = None if bias is None else bias[some].float()
        found[:, some] = functional.linear(rows, weight[some].float(), own)
    return found.view(*x.shape[:-1], len(weight))


def widen_linears(model: nn.Module) -> None:
    """Have a model's linear layers that are bfloat16 compute many rows so, where that is faster."""
    if has_bfloat16_products():
        return
    for module in model.modules():
        # Somebody's own kind of layer has its own way.
        if type(module) is nn.Linear and module.weight.dtype is torch.bfloat16:
            module.__class__ = WidenedLinear


@cache
def has_bfloat16_products() -> bool:
    """Whether torch multiplies bfloat16 here with instructions of the processor's; taken for
    granted of others than x86, which were not measured, and of a torch that does not tell.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    told = [getattr(torch.cpu, name, None) for name in names]
    return any(tell is None or tell() for tell in told)
