"""transformers' modules that hold a block's experts in two 3-D parameters, and their layout."""

from __future__ import annotations

from typing import Any

import torch

from tritllm.integrations.transformers.compat import experts_gate

GATE_UP, UP, DOWN = "gate_up_proj", "up_proj", "down_proj"
BIASES = GATE_UP_BIAS, DOWN_BIAS = "gate_up_proj_bias", "down_proj_bias"


def fused_leaves(module: Any) -> tuple[str, str] | None:
    """The names of its two parameters: of gate and up, or of up alone, and of down. None for a
    module that is no such.
    """

    def has(leaf: str) -> bool:
        parameter = getattr(module, leaf, None)
        return isinstance(parameter, torch.Tensor) and parameter.ndim == 3

    if not has(DOWN) or has("gate_proj"):
        return None
    return next(((first, DOWN) for first in (GATE_UP, UP) if has(first)), None)


def is_gated(fused: Any) -> bool:
    """Whether fused experts have gates."""
    return hasattr(fused, GATE_UP)


def is_transposed(fused: Any) -> bool:
    """Whether fused experts are [experts, in, out]."""
    if not is_gated(fused):
        return False
    hidden: int = fused.down_proj.shape[2]  # or I, of which the other has 2 I
    return fused.gate_up_proj.shape[1] == hidden


def is_interleaved(fused: Any) -> bool:
    """Whether the rows of gate and up alternate."""
    return not getattr(fused, "is_concatenated", True)


def is_plain_gate(fused: Any) -> bool:
    """Whether fused experts gate by act_fn(gate) * up."""
    return experts_gate(fused) in (None, "transformers.integrations.moe")


def joined(gate: torch.Tensor, up: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Gate and up, [..., I] each, as one [..., 2 I]."""
    if interleaved:
        return torch.stack((gate, up), dim=-1).flatten(-2)
    return torch.cat((gate, up), dim=-1)
