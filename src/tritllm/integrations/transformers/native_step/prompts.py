"""Which prompts the native blocks take, and which stay transformers' own forward's."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from tritllm.integrations.transformers.widened_linear import has_bfloat16_products
from tritllm.step import native_step as block_step


def pays() -> bool:
    """Whether the native blocks, which compute in float32, are the faster ones for a prompt.

    Where torch has instructions for bfloat16 its attention multiplies faster than float32's.
    """
    return not has_bfloat16_products()


def fits(model: Any, past: Any, blocks: ctypes.Array[block_step.Block], new: int) -> bool:
    """Whether a prompt of `new` tokens needs no gradients and takes no more of a cache than before.

    An int8 cache shows a prompt its own keys and values as they came, and a layer with a window
    keeps what that holds; native blocks would do neither.
    """
    if type(past) is not DynamicCache:
        return False
    if torch.is_grad_enabled() and any(x.requires_grad for x in model.parameters()):
        return False
    tokens = past.get_seq_length() + new
    return all(not block.window or tokens <= block.window for block in blocks)
