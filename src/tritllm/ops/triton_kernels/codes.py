"""Groups out of memory: what both Triton kernels begin with.

layout.py says where the bits of a code lie. A code becomes a float without a conversion, which is
slow on a GPU: its bits are put into the mantissa of 1.0, so that

    value = 1 + code * 2**-m,    level = 2**m * value - (2**m + L),

exact in float32. Depth 1 has codes at three places of the mantissa, m = 3, 5 and 7, because one
shift of a word then serves three weights; the other depths have m = 7.

What a mask leaves is or-ed with `exponent`, an argument of the kernel that is EXPONENT[depth]: were
it a constant, the mask and the or would be two instructions and not one.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Bits of 1.0, but for the lowest of its exponent, which comes with the codes from depth 2 on.
EXPONENT = {1: 0x3F800000, 2: 0x3F000000, 3: 0x3F000000, 4: 0x3F000000}


@triton.jit
def largest_level(depth: tl.constexpr):
    """L."""
    return 1 if depth == 1 else 4 if depth == 2 else 13 if depth == 3 else 40


@triton.jit
def load_groups(memory, steps, at, mask, blocks, groups, depth: tl.constexpr):
    """The bits of groups and their steps, at places `at` of the arrays; see layout.py.

    Returns (first, second, middle, high, step); what a depth has not is its first word again.
    """
    count = tl.cast(blocks, tl.int64) * groups * 16  # of the matrix's groups, rows made whole
    words = memory.to(tl.pointer_type(tl.int32))
    first = tl.load(words + at, mask=mask, other=0)
    second = first
    middle = first
    high = first
    end = words + count
    if depth > 1:
        second = tl.load(end + at, mask=mask, other=0)
        end += count
    if depth == 4:
        middle = tl.load(end + at, mask=mask, other=0)
        end += count
    shorts = end.to(tl.pointer_type(tl.int16))
    if depth > 2:
        bits = tl.load(shorts + at, mask=mask, other=0).to(tl.int32) & 0xFFFF
        # Byte j has the bits of weights 4q + j at its bit q, q = 0..3.
        high = bits | (bits << 12)
        shorts += count
    entry = tl.load(shorts.to(tl.pointer_type(tl.uint8)) + at, mask=mask, other=0)
    return first, second, middle, high, tl.load(steps + entry.to(tl.int32))


@triton.jit
def shifted(word, left: tl.constexpr):
    """word << left, or word >> -left where that is negative."""
    if left >= 0:
        return word << left
    else:  # noqa: RET505 (what follows a return would be compiled, too)
        return word >> -left


@triton.jit
def trit_value(word, exponent, i: tl.constexpr):
    """Depth 1: the value of weight i. m is 3, 5, 7 where i % 3 is 1, 0, 2.

    The code goes from bit 2i to bit 20, 18 or 16.
    """
    left: tl.constexpr = 18 - 6 * ((i + 1) // 3)
    place: tl.constexpr = 2 * i + left
    return ((shifted(word, left) & (3 << place)) | exponent).to(tl.float32, bitcast=True)


@triton.jit
def four_codes(low, middle, high, q: tl.constexpr, depth: tl.constexpr):
    """Depths 2 to 4: the codes of weights 4q .. 4q + 3, a byte each, with bit 7 set.

    low: the word that has their low four bits.
    """
    codes = (shifted(low, -4 * (q % 2)) & 0x0F0F0F0F) | -0x7F7F7F80  # 0x80 in each byte
    if depth == 3:
        codes |= shifted(high, 4 - q) & 0x10101010
    if depth == 4:
        codes |= shifted(middle, 4 - 2 * q) & 0x30303030
        codes |= shifted(high, 6 - q) & 0x40404040
    return codes


@triton.jit
def byte_value(codes, exponent, j: tl.constexpr):
    """The value of byte j of `four_codes`; m is 7."""
    return ((shifted(codes, 16 - 8 * j) & 0x00FF0000) | exponent).to(tl.float32, bitcast=True)
