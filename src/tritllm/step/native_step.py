"""Decoder blocks for a few new tokens a sequence, or for a part of a prompt, by address.

native/include/tritllm_step.h says what is computed; `step.reference` is the same in NumPy. Prepared
memory is checked against its header and its size; all other addresses are
the caller's to get right.
"""

from __future__ import annotations

import ctypes

from tritllm.native.library import check, library
from tritllm.native.structures import (
    BAD_ARGUMENT,
    GELU_TANH,
    HEAD_MULTIPLE,
    MOST_CHOSEN,
    MOST_HEAD_DIM,
    RELU_SQUARED,
    SILU,
    STEP_TOKENS,
    WIDTH_MULTIPLE,
    Block,
    Expert,
    Experts,
    Step,
    Vector,
    Weight,
)

__all__ = [
    "GELU_TANH",
    "HEAD_MULTIPLE",
    "MOST_CHOSEN",
    "MOST_HEAD_DIM",
    "RELU_SQUARED",
    "SILU",
    "STEP_TOKENS",
    "WIDTH_MULTIPLE",
    "Block",
    "Expert",
    "Experts",
    "Step",
    "Vector",
    "Weight",
    "llama_step",
    "scratch_size",
]


def scratch_size(blocks: ctypes.Array[Block], batch: int, new_tokens: int, tokens: int) -> int:
    """Bytes of scratch memory, aligned to 64, for a step of so many new tokens of each of `batch`
    sequences, which have `tokens` keys with them. More keys or rows take more memory.

    Raises ValueError for blocks that cannot be computed.
    """
    size = library().tritllm_llama_step_scratch(blocks, len(blocks), batch, new_tokens, tokens)
    if size < 0:
        raise ValueError("not blocks that the kernels can compute")
    return size


def llama_step(threads: int, blocks: ctypes.Array[Block], step: Step, scratch: int) -> None:
    """Replace hidden states [batch, new tokens, hidden] by what the blocks make of them, and write
    the new tokens' keys and values.

    scratch: an address. Raises ValueError for products that do not fit their block, RuntimeError
    for an instruction set that is not there; what has been written is then unspecified.
    """
    status = library().tritllm_llama_step(threads, blocks, len(blocks), ctypes.byref(step), scratch)
    if status == BAD_ARGUMENT:
        raise ValueError("a product does not fit its block, or its memory is not prepared")
    check(status)
