"""Plain torch on any device: weights are decoded a block of rows at a time, at every call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import torch

from tritllm.format.layout import groups_of
from tritllm.format.trits import GROUP, TRITS_PER_BYTE
from tritllm.ops.backends.backend import Backend
from tritllm.ops.definitions import check_input, check_packed

BLOCK_WEIGHTS = 1 << 22  # dequantized at a time: 16 MB of float32


def _dequantize(
    planes: torch.Tensor,
    scale: torch.Tensor,
    steps: torch.Tensor,
    in_features: int,
    dtype: torch.dtype,
    part_rows: Sequence[int] | None = None,
) -> torch.Tensor:
    check_packed(planes, scale, steps, in_features, part_rows)
    out = torch.empty((planes.shape[1], in_features), dtype=dtype, device=planes.device)
    for rows, weight in weight_blocks(planes, scale, steps, in_features, part_rows):
        out[rows] = weight
    return out


def _linear(
    x: torch.Tensor,
    planes: torch.Tensor,
    scale: torch.Tensor,
    steps: torch.Tensor,
    bias: torch.Tensor | None = None,
    part_rows: Sequence[int] | None = None,
) -> torch.Tensor:
    check_input(x, x.shape[-1] if x.ndim else 0, bias, planes.shape[1])
    check_packed(planes, scale, steps, x.shape[-1], part_rows)
    bias = None if bias is None else bias.to(x.dtype)
    out = x.new_empty((*x.shape[:-1], planes.shape[1]))
    for rows, weight in weight_blocks(planes, scale, steps, x.shape[-1], part_rows):
        part = None if bias is None else bias[rows]
        product = torch.nn.functional.linear(x, weight.to(x.dtype), part)
        if product.shape == out.shape:  # one block: nothing to put together
            return product
        out[..., rows] = product
    return out


BACKEND = Backend("CompositeExplicitAutograd", {"dequantize": _dequantize, "linear": _linear})


def weight_blocks(
    planes: torch.Tensor,
    scale: torch.Tensor,
    steps: torch.Tensor,
    in_features: int,
    part_rows: Sequence[int] | None = None,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of W and their w_hat float32 [n, K], in order, at most some 2**22 weights at a time.

    No block spans two parts, so that a product by blocks is for each part what it is alone.
    """
    for span, own in row_blocks(planes.shape[1], in_features, steps, part_rows):
        yield span, _decode_rows(planes[:, span], scale[span], own, in_features)


def row_blocks(
    rows: int, in_features: int, steps: torch.Tensor, part_rows: Sequence[int] | None
) -> Iterator[tuple[slice, torch.Tensor]]:
    """The rows of each of `weight_blocks`, and their steps [27]."""
    block = max(1, BLOCK_WEIGHTS // max(1, in_features))
    begin = 0
    for part, own in zip(part_rows or (rows,), steps.view(-1, steps.shape[-1]), strict=True):
        for start in range(begin, begin + part, block):
            yield slice(start, min(start + block, begin + part)), own
        begin += part


def _decode_rows(
    planes: torch.Tensor, scale: torch.Tensor, steps: torch.Tensor, in_features: int
) -> torch.Tensor:
    """w_hat float32 [n, K] of packed rows: planes [r, n, B], scale [n, S]."""
    groups = groups_of(in_features)
    level = _unpack(planes[0], in_features)
    for plane in planes[1:]:
        level = level * 3 + _unpack(plane, in_features)
    trits = _unpack(scale, 3 * groups).view(-1, groups, 3).int()
    index = trits[..., 0] * 9 + trits[..., 1] * 3 + trits[..., 2] + 13
    step = steps.index_select(0, index.view(-1)).view(-1, groups)
    step = step.repeat_interleave(GROUP, dim=1)[:, :in_features]
    return level.float() * step


def _unpack(packed: torch.Tensor, n: int) -> torch.Tensor:
    """Bytes uint8 [m, ceil(n/5)] -> trits int8 [m, n]."""
    digits = _trits_of_byte(packed.device).index_select(0, packed.reshape(-1).int())
    return digits.view(packed.shape[0], -1)[:, :n]


@cache
def _trits_of_byte(device: torch.device) -> torch.Tensor:
    """int8 [256, 5]."""
    with torch.inference_mode(False):
        byte = torch.arange(256, dtype=torch.int32).clamp_(max=242)
        digits = [byte // 3**i % 3 - 1 for i in range(TRITS_PER_BYTE)]
        return torch.stack(digits, dim=1).to(device, torch.int8)
