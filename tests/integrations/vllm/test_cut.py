"""What a tensor-parallel rank holds of a matrix, without vLLM."""

from __future__ import annotations

import pytest
import torch
from support.packed_matrices import random_matrix

from tritllm.format.trits import GROUP
from tritllm.integrations.vllm.cut import Columns
from tritllm.ops.definitions import dequantize
from tritllm.ops.numpy_arrays import torch_parts


@pytest.mark.parametrize(
    ("columns", "degree"), [(720, 2), (72, 8), (256, 4), (3696, 8), (90, 3), (90, 1), (48, 2)]
)
def test_the_ranks_hold_their_columns_and_pad_what_is_another_ranks(columns, degree):
    matrix = random_matrix((6, columns), 2)
    planes, scale, codebook = torch_parts(matrix)
    x = torch.randn(4, columns, dtype=torch.float64)
    whole = torch.from_numpy(matrix.decode()).double()
    total = torch.zeros(4, 6, dtype=torch.float64)
    for rank, share in enumerate(x.chunk(degree, -1)):
        own = Columns.of_rank(columns, rank, degree)
        weight = dequantize(
            own.of_planes(planes), own.of_scale(scale), codebook[-1], own.width, torch.float32
        )
        assert torch.equal(weight.double(), whole[:, own.start : own.stop])
        total += torch.nn.functional.pad(share, own.pads or (0, 0)) @ weight.double().T
    torch.testing.assert_close(total, x @ whole.T)


def test_whole_groups_need_no_padding():
    for rank in range(8):
        own = Columns.of_rank(29568, rank, 8)
        assert own.pads is None
        assert own.width == 29568 // 8
        assert own.start % GROUP == 0


def test_bytes_that_are_no_trits_are_refused_where_they_have_to_move():
    planes, _, _ = torch_parts(random_matrix((4, 96), 1))
    planes[0, 1, 12] = 250
    with pytest.raises(ValueError, match="250"):
        Columns.of_rank(96, 1, 2).of_planes(planes)
