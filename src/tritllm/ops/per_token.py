"""Activations rounded to int8 with one scale for each token: BitNet's rule (Wang et al., 2023)."""

from __future__ import annotations

import torch


def rounded_per_token(x: torch.Tensor) -> torch.Tensor:
    """X [..., K] as q / s, s = 127 / max(|x|, 1e-5) of a token and q = rint(x s), in x's dtype.

    What transformers' AutoBitLinear makes of its input, float32 in between. The gradient passes
    straight through.
    """
    wide = x.detach().float()
    scale = 127 / wide.abs().amax(dim=-1, keepdim=True).clamp_(min=1e-5)
    rounded = ((wide * scale).round_().clamp_(-128, 127) / scale).to(x.dtype)
    return x + (rounded - x).detach() if x.requires_grad else rounded
