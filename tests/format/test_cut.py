"""Cutting packed bytes against unpacking them, cutting the trits, and packing again."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritllm.format.cut import cut_columns, cut_rows
from tritllm.format.layout import packed_shapes
from tritllm.format.trits import pack_scale_index, pack_trits, unpack_scale_index, unpack_trits


def random_matrix(seed: int, rows: int, columns: int, depth: int):
    """Trits int8 [d, N, K], scale indices uint8 [N, G], and both packed."""
    rng = np.random.default_rng(seed)
    trits = rng.integers(-1, 2, (depth, rows, columns)).astype(np.int8)
    index = rng.integers(0, 27, (rows, -(-columns // 16))).astype(np.uint8)
    return trits, index, pack_trits(trits), pack_scale_index(index)


def check_cut(matrix, columns: int, start: int, stop: int) -> None:
    trits, index, weight, scale = matrix
    cut_weight, cut_scale = cut_columns(weight, scale, columns, start, stop)
    expected_weight = pack_trits(trits[..., start:stop])
    expected_scale = pack_scale_index(index[:, start // 16 : -(-stop // 16)])
    np.testing.assert_array_equal(cut_weight, expected_weight)
    np.testing.assert_array_equal(cut_scale, expected_scale)
    shapes = packed_shapes(trits.shape[1], stop - start, trits.shape[0])
    assert (cut_weight.shape, cut_scale.shape) == shapes[:2]


@given(st.data(), st.integers(1, 400), st.integers(1, 4))
def test_columns_at_any_group(data, columns, depth):
    ends = [*range(0, columns, 16), columns]
    start = data.draw(st.sampled_from(ends[:-1]))
    stop = data.draw(st.sampled_from([end for end in ends if end > start]))
    check_cut(random_matrix(columns, 3, columns, depth), columns, start, stop)


@pytest.mark.parametrize("columns", [16, 80, 83, 160, 176, 250, 400])
def test_every_cut_of_a_few_widths(columns):
    matrix = random_matrix(1, 2, columns, 2)
    ends = [*range(0, columns, 16), columns]
    for i, start in enumerate(ends):
        for stop in ends[i + 1 :]:
            check_cut(matrix, columns, start, stop)


def test_at_multiples_of_80_memory_is_shared():
    _, _, weight, scale = random_matrix(2, 4, 413, 3)
    for start, stop in ((0, 80), (80, 240), (160, 400), (320, 413), (0, 413)):
        parts = cut_columns(weight, scale, 413, start, stop)
        assert np.shares_memory(parts[0], weight)
        assert np.shares_memory(parts[1], scale)
    parts = cut_columns(weight, scale, 413, 16, 96)
    assert not np.shares_memory(parts[0], weight)


def test_the_columns_of_qwen2_5_72b_over_eight_ranks():
    """29,568 columns are 8 times 3,696 = 231 groups: no multiple of 80."""
    columns, ranks = 29_568, 8
    trits, index, weight, scale = random_matrix(3, 2, columns, 2)
    width = columns // ranks
    assert width % 80
    parts = [cut_columns(weight, scale, columns, r * width, (r + 1) * width) for r in range(ranks)]
    together = np.concatenate([unpack_trits(part[0], width) for part in parts], axis=-1)
    np.testing.assert_array_equal(together, trits)
    indices = [unpack_scale_index(part[1], width // 16) for part in parts]
    np.testing.assert_array_equal(np.concatenate(indices, axis=-1), index)


@pytest.mark.parametrize(
    ("start", "stop", "says"),
    [
        (0, 8, "columns 0..8 of 100: a cut must be at a multiple of 16"),
        (5, 100, "columns 5..100 of 100: a cut must be at a multiple of 16"),
        (0, 116, "columns 0..116 are not within 0..100"),
        (-16, 16, "columns -16..16 are not within 0..100"),
        (32, 32, "columns 32..32 are not within 0..100"),
        (48, 16, "columns 48..16 are not within 0..100"),
    ],
)
def test_other_columns_are_refused(start, stop, says):
    _, _, weight, scale = random_matrix(4, 2, 100, 1)
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        cut_columns(weight, scale, 100, start, stop)


@given(st.integers(0, 19), st.integers(243, 255), st.sampled_from([(16, 96), (16, 100), (0, 16)]))
def test_an_invalid_byte_never_becomes_a_valid_one(at, byte, cut):
    """Where trits move, a byte that is not five trits within the cut is refused."""
    _, _, weight, scale = random_matrix(5, 1, 100, 1)
    weight[0, 0, at] = byte
    touched = cut[0] // 5 <= at < -(-cut[1] // 5)
    if touched:
        with pytest.raises(ValueError, match=f"byte {byte} at .* is not five trits"):
            cut_columns(weight, scale, 100, *cut)
    else:
        cut_columns(weight, scale, 100, *cut)


def test_padding_that_is_not_zero_is_refused_where_trits_move():
    _, _, weight, scale = random_matrix(6, 1, 99, 1)
    weight[0, 0, -1] = 242  # trit 99 does not exist
    with pytest.raises(ValueError, match="padding after trit"):
        cut_columns(weight, scale, 99, 16, 99)


def test_rows_share_memory():
    _, _, weight, scale = random_matrix(7, 9, 33, 2)
    part = cut_rows(weight, scale, 2, 7)
    np.testing.assert_array_equal(part[0], weight[:, 2:7])
    np.testing.assert_array_equal(part[1], scale[2:7])
    assert np.shares_memory(part[0], weight)
    assert np.shares_memory(part[1], scale)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (0, 10), (4, 4), (5, 2)])
def test_other_rows_are_refused(start, stop):
    _, _, weight, scale = random_matrix(8, 9, 33, 2)
    with pytest.raises(ValueError, match=rf"rows {start}\.\.{stop} are not within 0\.\.9"):
        cut_rows(weight, scale, start, stop)
