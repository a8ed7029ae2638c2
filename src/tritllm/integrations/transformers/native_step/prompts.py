"""Which prompts the native blocks take, and which stay transformers' own forward's."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from tritllm.step import native_step as block_step


@cache
def pays() -> bool:
    """Whether the native blocks are the faster ones for a prompt; asked once a process."""
    return is_slow_in_torch()


def is_slow_in_torch() -> bool:
    """Whether torch has no instructions for bfloat16: on x86 without AVX512-BF16 and AMX.

    Where it has them, its attention multiplies faster than float32's, which native blocks compute
    with. That was not measured, nor were other processors.
    """
    has_avx2 = getattr(torch.cpu, "_is_avx2_supported", None)
    has_bfloat16 = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if has_avx2 is None or has_bfloat16 is None:  # a torch that does not tell
        return False
    return bool(has_avx2() and not has_bfloat16())


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
