"""Y = X W^T for many rows of activations: W is decoded a tile at a time for the tensor cores.

A tile holds w_hat rounded to the dtype of the activations, so that the product is that of a
dequantized layer of this dtype but for the order of its float32 sums.
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
def matrix_kernel(
    x,  # [batch, in_features], float16, bfloat16 or float32
    memory,
    steps,  # float32 [parts * 27]
    bias,  # [out_features], or anything where has_bias is not set
    y,  # [splits, batch, out_features], any float dtype
    batch,
    in_features,
    out_features,
    blocks,
    groups,
    split_groups,
    exponent,
    depth: tl.constexpr,
    has_bias: tl.constexpr,
    block_batch: tl.constexpr,
    block_rows: tl.constexpr,
    block_groups: tl.constexpr,
):
    """Program (r, b, s): rows of W in tile r, activations in tile b, the groups of split s."""
    n = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    m = tl.program_id(1) * block_batch + tl.arange(0, block_batch)
    split = tl.program_id(2)
    dtype: tl.constexpr = x.dtype.element_ty
    x_row = x + m.to(tl.int64)[:, None] * in_features
    m_inside = (m < batch)[:, None]
    end = tl.minimum((split + 1) * split_groups, groups)
    total = tl.zeros((block_batch, block_rows), tl.float32)
    for begin in range(split * split_groups, end, block_groups):
        group = begin + tl.arange(0, block_groups)
        at = ((n // 16)[:, None] * groups + group[None, :]) * 16 + (n % 16)[:, None]
        mask = (n < blocks * 16)[:, None] & (group < end)[None, :]
        first, second, middle, high, step = load_groups(
            memory, steps, at, mask, blocks, groups, depth
        )
        weight = _weights(first, second, middle, high, step, exponent, depth, dtype)
        k = begin * 16 + tl.arange(0, block_groups * 16)
        k_inside = (k < in_features) & (k < end * 16)
        tile = tl.load(x_row + k[None, :], mask=m_inside & k_inside[None, :], other=0)
        total = tl.dot(tile, weight.T, total, input_precision="ieee")
    n_inside = n < out_features
    if has_bias:
        added = tl.load(bias + n, mask=n_inside & (split == 0), other=0).to(tl.float32)
        total += added[None, :]
    to = y + (split * batch + m).to(tl.int64)[:, None] * out_features + n[None, :]
    tl.store(to, total.to(y.dtype.element_ty), mask=m_inside & n_inside[None, :])


@triton.jit
def _weights(first, second, middle, high, step, exponent, depth: tl.constexpr, dtype: tl.constexpr):
    """w_hat of groups [rows, groups], as [rows, groups * 16]."""
    made = ()
    for i in tl.static_range(16):
        if depth == 1:
            level = _trit(first, exponent, i)
        elif i < 8:
            level = _level(first, middle, high, exponent, i, depth)
        else:
            level = _level(second, middle, high, exponent, i, depth)
        made += ((level * step).to(dtype),)
    # Each join is one more last dimension, so the outermost is bit 0 of i and the innermost bit 3.
    pairs = ()
    for i in tl.static_range(8):
        pairs += (tl.join(made[i], made[i + 8]),)
    fours = ()
    for i in tl.static_range(4):
        fours += (tl.join(pairs[i], pairs[i + 4]),)
    halves = (tl.join(fours[0], fours[2]), tl.join(fours[1], fours[3]))
    return tl.join(halves[0], halves[1]).reshape((first.shape[0], first.shape[1] * 16))


@triton.jit
def _trit(word, exponent, i: tl.constexpr):
    """Depth 1: the level of weight i, float32."""
    scale: tl.constexpr = 8 if i % 3 == 1 else 32 if i % 3 == 0 else 128
    return trit_value(word, exponent, i) * scale - (scale + 1)


@triton.jit
def _level(low, middle, high, exponent, i: tl.constexpr, depth: tl.constexpr):
    """Depths 2 to 4: the level of weight i, float32."""
    codes = four_codes(low, middle, high, i // 4, depth)
    return byte_value(codes, exponent, i % 4) * 128 - (128 + largest_level(depth))
