"""Plain torch on any device: weights are decoded a block of rows at a time, at every call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tritllm.format.trits import GROUP
from tritllm.ops.backends.backend import Backend
from tritllm.ops.definitions import LinearArguments, Packed, check_packed
from tritllm.ops.portable import entries, levels, rows_at_a_time


def dequantize(
    planes: torch.Tensor,
    scale: torch.Tensor,
    steps: torch.Tensor,
    in_features: int,
    dtype: torch.dtype,
    part_rows: Sequence[int] | None = None,
) -> torch.Tensor:
    """`tritllm::dequantize` (definitions.py)."""
    packed = Packed(planes, scale, steps, in_features, part_rows)
    check_packed(packed)
    out = torch.empty((planes.shape[1], in_features), dtype=dtype, device=planes.device)
    for rows, weight in _weight_blocks(packed):
        out[rows] = weight
    return out


def _linear(*arguments: Any) -> torch.Tensor:
    call = LinearArguments(*arguments)
    call.check()
    x, bias = call.x, call.bias
    bias = None if bias is None else bias.to(x.dtype)
    out = x.new_empty((*x.shape[:-1], call.planes.shape[1]))
    for rows, weight in _weight_blocks(call.packed):
        part = None if bias is None else bias[rows]
        product = torch.nn.functional.linear(x, weight.to(x.dtype), part)
        if product.shape == out.shape:  # one block: nothing to put together
            return product
        out[..., rows] = product
    return out


BACKEND = Backend("CompositeExplicitAutograd", {"dequantize": dequantize, "linear": _linear})


def row_blocks(packed: Packed) -> Iterator[tuple[slice, Packed]]:
    """W by blocks of rows, in order, at most some 2**22 weights at a time.

    No block spans two parts, so that a product by blocks is for each part what it is alone.
    """
    planes, scale, steps, in_features, part_rows = packed
    block = rows_at_a_time(in_features)
    begin = 0
    parts = part_rows or (planes.shape[1],)
    for part, own in zip(parts, steps.view(-1, steps.shape[-1]), strict=True):
        for start in range(begin, begin + part, block):
            rows = slice(start, min(start + block, begin + part))
            yield rows, Packed(planes[:, rows], scale[rows], own, in_features)
        begin += part


def _weight_blocks(packed: Packed) -> Iterator[tuple[slice, torch.Tensor]]:
    """The rows of `row_blocks` and their w_hat float32 [n, K]."""
    for rows, block in row_blocks(packed):
        yield rows, _decode_rows(block.planes, block.scale, block.steps, block.in_features)


def _decode_rows(
    planes: torch.Tensor, scale: torch.Tensor, steps: torch.Tensor, in_features: int
) -> torch.Tensor:
    """w_hat float32 [n, K] of packed rows: planes [r, n, B], scale [n, S]."""
    entry = entries(scale, in_features)
    step = steps.index_select(0, entry.view(-1)).view_as(entry)
    step = step.repeat_interleave(GROUP, dim=1)[:, :in_features]
    return levels(planes, in_features).float() * step
