"""A tensor-parallel rank's columns of a packed matrix, on torch tensors. Nothing here needs vLLM.

A rank multiplies its K/degree columns of W with its part of x. Where such a part begins or ends
within a group of 16, the rank holds the whole group, and its x gets zeros in the columns that are
another rank's: the products with them are zero, so the ranks' sum is that of all columns. So any
degree that divides K can be served; one that leaves whole groups costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tritllm.format.cut import cut_plane_columns, cut_scale_columns
from tritllm.format.trits import GROUP


@dataclass(frozen=True)
class Columns:
    """The columns start..stop-1 that a rank holds of K, of which it is given x from first to last.

    before, after: zeros that x needs in front and behind.
    """

    in_features: int
    start: int
    stop: int
    before: int
    after: int

    @classmethod
    def of_rank(cls, in_features: int, rank: int, degree: int) -> Columns:
        """The share of a rank of `degree`, which divides K."""
        share = in_features // degree
        first, last = rank * share, (rank + 1) * share
        start = first // GROUP * GROUP
        stop = min(-(-last // GROUP) * GROUP, in_features)
        return cls(in_features, start, stop, first - start, stop - last)

    @property
    def width(self) -> int:
        """Columns of the rank's matrix."""
        return self.stop - self.start

    @property
    def pads(self) -> tuple[int, int] | None:
        """(before, after) as torch's pad takes it; None where x fits as it is."""
        return (self.before, self.after) if self.before or self.after else None

    def of_planes(self, planes: torch.Tensor) -> torch.Tensor:
        """The rank's part of planes uint8 [r, N, ceil(K/5)].

        Raises ValueError for a byte that is not five trits, where the trits have to move.
        """
        if self.width == self.in_features:
            return planes
        part = cut_plane_columns(planes.cpu().numpy(), self.in_features, self.start, self.stop)
        return torch.from_numpy(part)

    def of_scale(self, scale: torch.Tensor) -> torch.Tensor:
        """The rank's part of scale indices uint8 [N, ceil(3G/5)]; raises as `of_planes`."""
        if self.width == self.in_features:
            return scale
        part = cut_scale_columns(scale.cpu().numpy(), self.in_features, self.start, self.stop)
        return torch.from_numpy(part)
