"""Torch operators on packed weights, the same on every device and under `torch.compile`.

Notation: W is [N, K] = [out_features, in_features], G = ceil(K/16), r planes are read. The portable
layout is the file's (docs/format.md): planes uint8 [r, N, ceil(K/5)], scale uint8 [N, ceil(3G/5)],
steps float32 [27], the row of the codebook that applies at r planes.

* `tritllm::dequantize(planes, scale, steps, in_features, dtype) -> [N, K]`: w_hat, rounded once to
  float32 and once more to dtype, the very numbers of `TritTensor.decode`.
* `tritllm::linear(x, planes, scale, steps, bias) -> [..., N]`: x [..., K] float32, bfloat16 or
  float16; w_hat is rounded to x's dtype and multiplied by torch in that dtype, a block of rows of W
  at a time. So it is what a dequantized layer of that dtype computes.
* `tritllm::linear_prepared(x, prepared, out_features, bias) -> [..., N]`: the same product by the
  native kernels from the memory that `cpu_kernels.prepare` made; CPU only.

The operators do not check bytes: whoever loads them does. A byte above 242 reads as 242.
"""

from __future__ import annotations

from functools import cache

import torch
from torch.library import Library, register_fake

from tritllm.format.trits import GROUP, TRITS_PER_BYTE
from tritllm.ops import cpu_kernels

BLOCK_WEIGHTS = 1 << 22  # dequantized at a time: 16 MB of float32

_LIBRARY = Library("tritllm", "DEF")
_LIBRARY.define(
    "dequantize(Tensor planes, Tensor scale, Tensor steps, SymInt in_features, ScalarType dtype)"
    " -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "linear(Tensor x, Tensor planes, Tensor scale, Tensor steps, Tensor? bias=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_LIBRARY.define(
    "linear_prepared(Tensor x, Tensor prepared, SymInt out_features, Tensor? bias=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


# --- Implementations in plain torch ---------------------------------------------------------------


def _dequantize(
    planes: torch.Tensor,
    scale: torch.Tensor,
    steps: torch.Tensor,
    in_features: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    rows = planes.shape[1]
    block = max(1, BLOCK_WEIGHTS // max(1, in_features))
    if rows <= block:
        return _decode_rows(planes, scale, steps, in_features).to(dtype)
    out = torch.empty((rows, in_features), dtype=dtype, device=planes.device)
    for start in range(0, rows, block):
        span = slice(start, start + block)
        out[span] = _decode_rows(planes[:, span], scale[span], steps, in_features)
    return out


def _linear(
    x: torch.Tensor,
    planes: torch.Tensor,
    scale: torch.Tensor,
    steps: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    in_features = x.shape[-1]
    rows = planes.shape[1]
    if planes.shape[2] != -(-in_features // TRITS_PER_BYTE):
        raise ValueError(
            f"x has {in_features} features, a packed row of {planes.shape[2]} bytes has not"
        )
    block = max(1, BLOCK_WEIGHTS // max(1, in_features))
    if rows <= block:
        weight = _decode_rows(planes, scale, steps, in_features).to(x.dtype)
        return torch.nn.functional.linear(x, weight, bias)
    out = x.new_empty((*x.shape[:-1], rows))
    for start in range(0, rows, block):
        span = slice(start, start + block)
        weight = _decode_rows(planes[:, span], scale[span], steps, in_features).to(x.dtype)
        part = None if bias is None else bias[span]
        out[..., span] = torch.nn.functional.linear(x, weight, part)
    return out


def _decode_rows(
    planes: torch.Tensor, scale: torch.Tensor, steps: torch.Tensor, in_features: int
) -> torch.Tensor:
    """w_hat float32 [n, K] of packed rows: planes [r, n, B], scale [n, S]."""
    groups = -(-in_features // GROUP)
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


# --- Registration ---------------------------------------------------------------------------------


def _dequantize_fake(
    planes: torch.Tensor,
    scale: torch.Tensor,
    steps: torch.Tensor,
    in_features: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    return planes.new_empty((planes.shape[1], in_features), dtype=dtype)


def _linear_fake(
    x: torch.Tensor,
    planes: torch.Tensor,
    scale: torch.Tensor,
    steps: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], planes.shape[1]))


def _linear_prepared_fake(
    x: torch.Tensor, prepared: torch.Tensor, out_features: int, bias: torch.Tensor | None = None
) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


_LIBRARY.impl("dequantize", _dequantize, "CompositeExplicitAutograd")
_LIBRARY.impl("linear", _linear, "CompositeExplicitAutograd")
_LIBRARY.impl("linear_prepared", cpu_kernels.linear, "CPU")
register_fake("tritllm::dequantize", _dequantize_fake, lib=_LIBRARY)
register_fake("tritllm::linear", _linear_fake, lib=_LIBRARY)
register_fake("tritllm::linear_prepared", _linear_prepared_fake, lib=_LIBRARY)

dequantize = torch.ops.tritllm.dequantize.default
linear = torch.ops.tritllm.linear.default
linear_prepared = torch.ops.tritllm.linear_prepared.default
