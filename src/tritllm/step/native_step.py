"""The decoder blocks of the Llama family for one new token a sequence, by address.

The structures and the function of native/include/tritllm_step.h, which says what they compute;
`kernels.decoder_reference` is the same in NumPy. Nothing about the memory is checked but the
headers of what is prepared.
"""

from __future__ import annotations

import ctypes

from tritllm.native.library import BAD_ARGUMENT, check
from tritllm.products import library

WIDTH_MULTIPLE = 16  # of hidden_size and intermediate_size
HEAD_MULTIPLE, MOST_HEAD_DIM = 32, 256

_INT, _INT64, _FLOAT, _POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


class Vector(ctypes.Structure):
    """tritllm_vector: an address, None for no vector, and an element type."""

    _fields_ = (("data", _POINTER), ("dtype", _INT))


class Weight(ctypes.Structure):
    """tritllm_weight: prepared memory and a bias."""

    _fields_ = (("prepared", _POINTER), ("bias", Vector))


class Block(ctypes.Structure):
    """tritllm_block."""

    _fields_ = (
        ("hidden", _INT64),
        ("intermediate", _INT64),
        ("heads", _INT),
        ("kv_heads", _INT),
        ("head_dim", _INT),
        ("dtype", _INT),
        ("exact", _INT),
        ("epsilon", _FLOAT),
        ("scaling", _FLOAT),
        *((name, Vector) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
        *((name, Weight) for name in ("q", "k", "v", "o", "gate", "up", "down")),
    )


class Step(ctypes.Structure):
    """tritllm_step."""

    _fields_ = (
        ("batch", _INT64),
        ("tokens", _INT64),
        ("hidden", _POINTER),
        ("cos", _POINTER),
        ("sin", _POINTER),
        ("rotary_stride", _INT64),
        ("key", _POINTER),
        ("value", _POINTER),
        ("key_stride", _INT64 * 3),
        ("mask", _POINTER),
        ("mask_stride", _INT64),
        ("final_norm", Vector),
        ("final_epsilon", _FLOAT),
    )


def scratch_size(block: Block, batch: int, tokens: int) -> int:
    """Bytes of scratch memory, aligned to 64, for a step over so many keys.

    Raises ValueError for a block that cannot be computed.
    """
    size = library.library().tritllm_llama_step_scratch(ctypes.byref(block), batch, tokens)
    if size < 0:
        raise ValueError("not a block that the kernels can compute")
    return size


def decoder_step(threads: int, blocks: ctypes.Array[Block], step: Step, scratch: int) -> None:
    """Replace hidden states [batch, hidden] by what the blocks make of them, and write the new
    token's keys and values.

    scratch: an address. Raises ValueError for products that do not fit their block, RuntimeError
    for an instruction set that is not there; what has been written is then unspecified.
    """
    status = library.library().tritllm_llama_step(
        threads, blocks, len(blocks), ctypes.byref(step), scratch
    )
    if status == BAD_ARGUMENT:
        raise ValueError("a product does not fit its block, or its memory is not prepared")
    check(status)
