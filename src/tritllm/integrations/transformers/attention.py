"""Attention of one new token on a CPU, where query heads share keys and values.

torch's CPU attention takes one row at a time through a matrix product made for many, and
transformers first copies keys and values for every query head. But the heads that share keys can be
the rows: for one token there is nothing causal between them. That is the same sum, some ten times
faster. Everything else goes to transformers' own `sdpa`.
"""

from __future__ import annotations

import inspect
import re
import sys
from functools import cache
from typing import Any

import torch
from transformers import AttentionInterface

from tritllm.integrations.transformers.compat import (
    AttentionMaskInterface,
    attention_of,
    sdpa_attention_forward,
    sdpa_mask,
)

NAME = "tritllm_sdpa"


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: query [B, H, L, D], key and value [B, G, T, D] -> [B, L, H, D]."""
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    one_token = length == 1 and heads != groups and query.device.type == "cpu"
    one_mask = attention_mask is None or attention_mask.shape[1] == 1
    more = dropout or any(kwargs.get(name) is not None for name in ("position_bias", "cache"))
    if not one_token or not one_mask or more:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    rows = query.reshape(batch, groups, heads // groups, width)
    out = torch.nn.functional.scaled_dot_product_attention(
        rows, key, value, attn_mask=attention_mask, scale=scaling
    )
    return out.reshape(batch, 1, heads, width), None


def use_attention(model: Any) -> None:
    """Let a model that uses `sdpa` use this instead, if its code does not ask for that by name."""
    if attention_of(model.config) != "sdpa":
        return
    if any(
        _asks_for_sdpa(name) for name in {type(module).__module__ for module in model.modules()}
    ):
        return
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


@cache
def _asks_for_sdpa(module: str) -> bool:
    """Whether a Python module of models does something else where attention is not `sdpa`.

    DeepSeek V3.2's sparse attention gives its mask to `eager` and `sdpa` alone, and would attend to
    all tokens under another name.
    """
    if module.startswith("torch."):
        return False
    try:
        source = inspect.getsource(sys.modules[module])
    except (OSError, TypeError):
        return True  # it cannot be told
    return re.search(r"_attn_implementation\b[^\n]*\"sdpa\"", source) is not None
