"""The portable layout's bytes in plain torch, on any device: levels and entries of the codebook."""

from __future__ import annotations

from functools import cache

import torch

from tritllm.format.layout import groups_of
from tritllm.format.trits import TRITS_PER_BYTE

BLOCK_WEIGHTS = 1 << 22  # decoded at a time: 16 MB of float32


def rows_at_a_time(in_features: int) -> int:
    """Rows of so many weights that are decoded at a time."""
    return max(1, BLOCK_WEIGHTS // max(1, in_features))


def levels(planes: torch.Tensor, in_features: int) -> torch.Tensor:
    """Planes uint8 [r, n, ceil(K/5)] -> levels int8 [n, K]."""
    level = _unpack(planes[0], in_features)
    for plane in planes[1:]:
        level = level * 3 + _unpack(plane, in_features)
    return level


def entries(scale: torch.Tensor, in_features: int) -> torch.Tensor:
    """Scale indices uint8 [n, ceil(3G/5)] -> entries of the codebook int32 [n, G]."""
    groups = groups_of(in_features)
    trits = _unpack(scale, 3 * groups).view(-1, groups, 3).int()
    return trits[..., 0] * 9 + trits[..., 1] * 3 + trits[..., 2] + 13


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
