"""Which kernel computes a product, and with what tiles."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton

from tritllm.format.layout import groups_of
from tritllm.format.trits import GROUP
from tritllm.ops.triton_kernels.codes import EXPONENT
from tritllm.ops.triton_kernels.layout import ROWS, blocks_of
from tritllm.ops.triton_kernels.matrix import matrix_kernel
from tritllm.ops.triton_kernels.vector import vector_kernel

MOST_VECTOR_ROWS = 4  # of activations; beyond, their sums need more instructions than tensor cores


class VectorTile(NamedTuple):
    """Groups that a program's threads take at once, and its warps."""

    block_groups: int
    num_warps: int


class MatrixTile(NamedTuple):
    """What a program makes at once: [block_batch, block_rows] of y from so many groups a turn."""

    block_batch: int
    block_rows: int
    block_groups: int
    num_warps: int
    num_stages: int


# By rows of activations: of the compiled code's, few instructions a weight and nothing spilled
# (benchmarks/gpu_code.py).
VECTOR_TILES = {1: VectorTile(64, 4), 2: VectorTile(64, 4), 3: VectorTile(32, 4),
                4: VectorTile(32, 4)}  # fmt: skip
MATRIX_TILES = (
    MatrixTile(16, 64, 4, 4, 3),
    MatrixTile(32, 64, 4, 4, 3),
    MatrixTile(64, 64, 4, 4, 3),
    MatrixTile(128, 128, 4, 8, 3),
)
FLOAT32_TILE = MatrixTile(16, 32, 2, 4, 3)  # without tensor cores, whose float32 is rounded
_PROGRAMS_A_PROCESSOR = 2  # below that, the groups are split among programs


def matrix_tile(batch: int, dtype: torch.dtype) -> MatrixTile:
    """The tile for so many rows of activations."""
    if dtype is torch.float32:
        return FLOAT32_TILE
    return next((tile for tile in MATRIX_TILES if batch <= tile.block_batch), MATRIX_TILES[-1])


def linear(
    x: torch.Tensor,
    memory: torch.Tensor,
    steps: torch.Tensor,
    depth: int,
    out_features: int,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Y [batch, N] = X W^T + bias. x [batch, K]: float32, bfloat16 or float16, contiguous.

    memory is layout.py's of W [N, K] at this depth; steps float32 [parts * 27], bias [N].
    """
    batch, in_features = x.shape
    y = x.new_empty((batch, out_features))
    if not y.numel():
        return y
    blocks, groups = blocks_of(out_features), groups_of(in_features)
    added = x if bias is None else bias  # a pointer that is not read
    options = {"depth": depth, "has_bias": bias is not None}
    if batch <= MOST_VECTOR_ROWS:
        if in_features % GROUP:
            x = torch.nn.functional.pad(x, (0, groups * GROUP - in_features))
        tile = VECTOR_TILES[batch]
        vector_kernel[(blocks,)](
            x, memory, steps, added, y, out_features, blocks, groups, EXPONENT[depth],
            batch=batch, **options, **tile._asdict(),
        )  # fmt: skip
        return y
    chosen = matrix_tile(batch, x.dtype)
    grid = triton.cdiv(blocks * ROWS, chosen.block_rows), triton.cdiv(batch, chosen.block_batch)
    split_groups = _split_groups(grid[0] * grid[1], groups, chosen.block_groups, x.device)
    splits = triton.cdiv(groups, split_groups)
    parts = y if splits == 1 else x.new_empty((splits, *y.shape), dtype=torch.float32)
    matrix_kernel[(*grid, splits)](
        x, memory, steps, added, parts, batch, in_features, out_features, blocks, groups,
        split_groups, EXPONENT[depth], **options, **chosen._asdict(),
    )  # fmt: skip
    return y if splits == 1 else parts.sum(0).to(y.dtype)


def _split_groups(programs: int, groups: int, block_groups: int, device: torch.device) -> int:
    """Groups that one program takes, such that there are programs enough for all processors."""
    turns = triton.cdiv(groups, block_groups)
    splits = min(turns, max(1, _PROGRAMS_A_PROCESSOR * _processors(device) // programs))
    return triton.cdiv(turns, splits) * block_groups


@cache
def _processors(device: torch.device) -> int:
    """Streaming multiprocessors; 1 for the interpreter's CPU."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
