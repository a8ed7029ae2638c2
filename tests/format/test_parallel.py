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
def test_columns_are_cut_where_the_bytes_can_be(columns, parts):
    planes, scale, _ = (np.full(s, 121, np.uint8) for s in packed_shapes(1, columns, 1))
    found = column_parts(columns, parts)
    if columns % parts:
        assert found.size is None
        return
    size = columns // parts
    with nullcontext() if found.size else pytest.raises(ValueError, match="multiple of 16"):
        for start in range(0, columns, size):
            cut_columns(planes, scale, columns, start, start + size)
    assert found.size in (size, None)


@pytest.mark.parametrize(
    ("columns", "parts", "size", "reason"),
    [
        (29568, 8, 3696, "29,568 columns / 16 = 1,848 groups: divisible by 8"),
        (29568, 16, None, "29,568 columns / 16 = 1,848 groups: not divisible by 16"),
        (72, 2, None, "72 columns are not a multiple of 16, so they cannot be cut"),
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
