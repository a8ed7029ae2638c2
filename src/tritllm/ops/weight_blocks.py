"""The weights of a product decoded a block of rows at a time, for gradients and norms.

Where a layer has memory that its device prepared and that can be decoded, the planes stay what
they are: pages of the file that nobody reads, which the system may keep elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from tritllm.ops.backends.default import row_blocks
from tritllm.ops.definitions import Packed, dequantize, dequantize_prepared
from tritllm.ops.portable import rows_at_a_time


class Weights(NamedTuple):
    """W [N, K] in the portable layout, in prepared memory, or in both, at the planes to read."""

    planes: torch.Tensor | None
    scale: torch.Tensor | None
    steps: torch.Tensor
    in_features: int
    out_features: int
    part_rows: Sequence[int] | None = None
    prepared: torch.Tensor | None = None
    layout: int = 0
    depth: int = 0

    @property
    def packed(self) -> Packed | None:
        """The portable layout, where it was given."""
        if self.planes is None or self.scale is None:
            return None
        return Packed(self.planes, self.scale, self.steps, self.in_features, self.part_rows)

    def blocks(self, dtype: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
        """W rounded to dtype, some 2**22 weights at a time: the rows, in order, and they decoded.

        By operators, which torch.compile does not look into. Either layout gives the same numbers
        by the same blocks. Raises RuntimeError where there is nothing that can be decoded.
        """
        if self.prepared is not None and self.prepared.is_cpu and self.part_rows is None:
            size = rows_at_a_time(self.in_features)
            for begin in range(0, self.out_features, size):
                end = min(begin + size, self.out_features)
                yield slice(begin, end), dequantize_prepared(
                    self.prepared, self.steps, self.layout, self.depth, self.in_features,
                    self.out_features, dtype, begin, end,
                )  # fmt: skip
            return
        packed = self.packed
        if packed is None:
            raise RuntimeError(
                "tritllm::linear_prepared: the gradient of x needs the arguments planes and scale"
            )
        for rows, block in row_blocks(packed):
            yield rows, dequantize(block.planes, block.scale, block.steps, block.in_features, dtype)
