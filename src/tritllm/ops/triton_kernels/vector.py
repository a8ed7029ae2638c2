"""Y = X W^T for a few rows of activations: as many bytes as W has, and few instructions a weight.

A program makes 16 rows of W's results, a thread the part of four rows that is in every 32nd group.
Activations are read once for the four. Nothing is exchanged between threads before the end.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tritllm.ops.triton_kernels.codes import (
    byte_value,
    four_codes,
    largest_level,
    load_groups,
    trit_value,
)


@triton.jit
def vector_kernel(
    x,  # [batch, groups * 16], any float dtype, zero beyond in_features
    memory,
    steps,  # float32 [parts * 27]
    bias,  # [out_features], or anything where has_bias is not set
    y,  # [batch, out_features], any float dtype
    out_features,
    blocks,
    groups,
    exponent,
    depth: tl.constexpr,
    has_bias: tl.constexpr,
    batch: tl.constexpr,  # 1 to 4
    block_groups: tl.constexpr,
):
    """Sums are float32: of level * x over a group, then of step * that over the groups."""
    block = tl.program_id(0)
    lane = tl.arange(0, 16)
    total = (tl.zeros((block_groups, 16), tl.float32),) * batch
    for begin in range(0, groups, block_groups):
        group = begin + tl.arange(0, block_groups)
        inside = group < groups
        at = (block * groups + group)[:, None] * 16 + lane[None, :]
        mask = inside[:, None] & (lane >= 0)[None, :]
        first, second, middle, high, step = load_groups(
            memory, steps, at, mask, blocks, groups, depth
        )
        following = ()
        for row in tl.static_range(batch):
            # The same codes for each row: the compiler makes them once.
            from_here = x + (row * groups + group) * 16
            if depth == 1:
                dot = _dot_trits(first, from_here, inside, exponent)
            else:
                dot = _dot_bytes(first, second, middle, high, from_here, inside, exponent, depth)
            following += (total[row] + step * dot,)
        total = following
    row_of_w = block * 16 + lane
    inside_w = row_of_w < out_features
    for row in tl.static_range(batch):
        result = tl.sum(total[row], axis=0)
        if has_bias:
            result += tl.load(bias + row_of_w, mask=inside_w, other=0).to(tl.float32)
        to = y + row * out_features + row_of_w
        tl.store(to, result.to(y.dtype.element_ty), mask=inside_w)


@triton.jit
def _dot_trits(word, x, inside, exponent):
    """Depth 1: the sums of level * x over each group, [groups, 16]; x at each group's first."""
    near = tl.zeros(word.shape, tl.float32)  # of values with m = 3
    middle = tl.zeros(word.shape, tl.float32)  # 5
    far = tl.zeros(word.shape, tl.float32)  # 7
    offset = tl.zeros(inside.shape, tl.float32)  # of (2**m + L) * x
    for i in tl.static_range(16):
        own = tl.load(x + i, mask=inside, other=0).to(tl.float32)
        product = trit_value(word, exponent, i) * own[:, None]
        if i % 3 == 1:
            near += product
            offset += 9 * own
        elif i % 3 == 0:
            middle += product
            offset += 33 * own
        else:
            far += product
            offset += 129 * own
    return near * 8 + middle * 32 + far * 128 - offset[:, None]


@triton.jit
def _dot_bytes(first, second, middle, high, x, inside, exponent, depth: tl.constexpr):
    """Depths 2 to 4: the sums of level * x over each group, [groups, 16]."""
    dot = tl.zeros(first.shape, tl.float32)
    whole = tl.zeros(inside.shape, tl.float32)
    for q in tl.static_range(4):
        if q < 2:
            codes = four_codes(first, middle, high, q, depth)
        else:
            codes = four_codes(second, middle, high, q, depth)
        for j in tl.static_range(4):
            own = tl.load(x + (4 * q + j), mask=inside, other=0).to(tl.float32)
            whole += own
            dot += byte_value(codes, exponent, j) * own[:, None]
    return dot * 128 - whole[:, None] * (128 + largest_level(depth))
