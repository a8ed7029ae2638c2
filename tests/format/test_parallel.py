"""Equal parts against cutting: a degree is allowed exactly where every part can be cut out."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritllm.format.cut import cut_columns
from tritllm.format.layout import packed_shapes
from tritllm.format.parallel import column_parts, head_parts, row_parts


@given(st.integers(1, 600), st.integers(1, 9))
def test_the_reason_says_whether_parts_are_of_whole_groups(columns, parts):
    planes, scale, _ = (np.full(s, 121, np.uint8) for s in packed_shapes(1, columns, 1))
    found = column_parts(columns, parts)
    assert found.size == (None if columns % parts else columns // parts)
    if found.size is None:
        return
    within = "part of a group of 16" in found.reason
    with pytest.raises(ValueError, match="multiple of 16") if within else nullcontext():
        for start in range(0, columns, found.size):
            cut_columns(planes, scale, columns, start, start + found.size)


@pytest.mark.parametrize(
    ("columns", "parts", "size", "reason"),
    [
        (29568, 8, 3696, "29,568 columns / 16 = 1,848 groups: divisible by 8"),
        (29568, 16, 1848, "29,568 columns / 16 = 1,848, part of a group of 16"),
        (29568, 5, None, "29,568 columns: not divisible by 5"),
        (72, 2, 36, "72 columns / 2 = 36, part of a group of 16"),
        (72, 1, 72, "72 columns stay whole"),
    ],
)
def test_the_reason_is_said(columns, parts, size, reason):
    assert column_parts(columns, parts) == (size, reason)


def test_rows_are_cut_anywhere_into_equal_parts():
    assert row_parts(1026, 2) == (513, "1,026 rows / 2 = 513")
    assert row_parts(1026, 4) == (None, "1,026 rows cannot be cut into 4 equal parts")


@pytest.mark.parametrize(
    ("heads", "key_value_heads", "allowed"),
    [
        (64, 8, [1, 2, 4, 8, 16]),
        (14, 2, [1, 2, 14]),
        (28, 4, [1, 2, 4, 28]),
        (12, 3, [1, 3, 6, 12]),
    ],
)
def test_heads_are_shared_evenly_or_repeated_evenly(heads, key_value_heads, allowed):
    found = [n for n in range(1, 29) if head_parts(heads, key_value_heads, n).size]
    assert found == allowed
    assert all(head_parts(heads, key_value_heads, n).size == heads // n for n in allowed)


@pytest.mark.parametrize("count", [row_parts, column_parts])
def test_no_parts_at_all(count):
    with pytest.raises(ValueError, match="0 parts, expected 1 or more"):
        count(64, 0)
    with pytest.raises(ValueError, match="0 parts"):
        head_parts(4, 4, 0)
