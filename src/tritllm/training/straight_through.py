"""A matrix whose levels and steps are trained, and whose forward pass is the file's own arithmetic.

Of a matrix [N, K] three things are held: a latent level v for each weight (a real number), a step
s_j for each of the 27 entries of the codebook (its logarithm), and the entry of each group, which
stays what it was. The forward pass decodes what would be written now,

    k = clamp(rint(v), -L, L),   w = float32(k) * s_j,

so that a loss measured during training is the loss of the file. Backwards k counts as v (the
straight-through estimator of Bengio et al., arXiv:1308.3432), while the derivative by a step is
the true one of this forward pass:

    dloss/dv = dloss/dw * s_j,   dloss/dlog s_j = sum over the entry's weights of dloss/dw * w.

A latent level is in units of its step, not of the weight, so that a step that moves leaves the
levels alone, and one learning rate fits every matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from tritllm.codec import TritTensor
from tritllm.format.trits import ENTRIES, GROUP, max_level
from tritllm.training.read_off import tensor_of

MARGIN = 0.45  # how far from the middle of its level's cell a latent level may start
REACH = 0.5  # how far beyond the largest level it may go: farther, it could not come back


class Decode(torch.autograd.Function):  # type: ignore[misc]
    """Latent levels [N, K], steps [27], indices uint8 [N, G], depth -> weights [N, K]."""

    @staticmethod
    def forward(
        ctx: Any, latent: torch.Tensor, steps: torch.Tensor, index: torch.Tensor, depth: int
    ) -> torch.Tensor:
        """Decode what would be written now."""
        levels = levels_of(latent, depth)
        ctx.save_for_backward(levels, steps, index)
        return decoded(levels, steps, index)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients by the latent levels (straight through) and by the steps."""
        levels, steps, index = ctx.saved_tensors
        by_latent = by_steps = None
        if ctx.needs_input_grad[0]:
            by_latent = gradient * spread(steps[index.long()], gradient.shape[1])
        if ctx.needs_input_grad[1]:
            by_steps = sum_by_entry(gradient * levels, index)
        return by_latent, by_steps, None, None


def levels_of(latent: torch.Tensor, depth: int) -> torch.Tensor:
    """int8: the level that each latent level stands for, half to even."""
    largest = max_level(depth)
    return latent.round().clamp(-largest, largest).to(torch.int8)


def decoded(levels: torch.Tensor, steps: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """float32 [N, K] of levels int8 [N, K]: float32(level) * step, as every reader decodes."""
    return levels.to(steps.dtype) * spread(steps[index.long()], levels.shape[1])


def spread(per_group: torch.Tensor, columns: int) -> torch.Tensor:
    """[N, G] -> [N, columns]: each group's number for each of its columns."""
    return per_group.repeat_interleave(GROUP, dim=1)[:, :columns]


def sum_by_entry(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[27]: sums of values [N, K] over the groups of each entry, in the same order on any run."""
    short = -values.shape[1] % GROUP
    groups = nn.functional.pad(values, (0, short)).unflatten(1, (-1, GROUP)).sum(2)
    zero = groups.new_zeros(())
    return torch.stack([torch.where(index == j, groups, zero).sum() for j in range(ENTRIES)])


class TrainedMatrix(nn.Module):  # type: ignore[misc]
    """A matrix in training; `forward` gives its weights, `read_off` its tensor for the file.

    start: the tensor whose levels, indices and steps training starts from.
    weight: float [N, K], the source's; a latent level starts at weight / step, moved into its
        level's cell. Of equal levels those start nearest to a boundary that were rounded most.
    """

    def __init__(self, start: TritTensor, weight: np.ndarray) -> None:
        super().__init__()
        self.depth = start.depth
        levels = torch.from_numpy(start.levels())
        steps = torch.from_numpy(start.codebook[start.depth - 1].copy())
        self.register_buffer("start", steps)
        self.register_buffer("index", torch.from_numpy(start.scale_index().copy()))
        source = torch.from_numpy(np.asarray(weight, np.float32))
        step = spread(steps[self.index.long()], source.shape[1])
        latent = torch.where(step > 0, source / step, torch.zeros(()))
        latent = latent.clamp(levels - MARGIN, levels + MARGIN)
        self.latent = nn.Parameter(latent)
        self.log_steps = nn.Parameter(torch.zeros(ENTRIES))
        self.limit()

    @torch.no_grad()
    def limit(self) -> None:
        """Bring latent levels back that have gone beyond reach: after each optimizer's step."""
        reach = max_level(self.depth) + REACH
        self.latent.clamp_(-reach, reach)

    def steps(self) -> torch.Tensor:
        """float32 [27]: the codebook's steps now, in the start's order."""
        return self.start * self.log_steps.exp()

    def forward(self) -> torch.Tensor:
        """float32 [N, K]: the weights that a reader of `read_off()` decodes, bit for bit."""
        return Decode.apply(self.latent, self.steps(), self.index, self.depth)

    @torch.no_grad()
    def read_off(self, weight: np.ndarray) -> TritTensor:
        """What the file holds of this matrix.

        weight: the source's, for the reported error alone.
        """
        return tensor_of(
            levels_of(self.latent, self.depth).cpu().numpy(),
            self.index.cpu().numpy(),
            self.steps().cpu().numpy(),
            weight,
            self.depth,
        )


class _Round(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return value.to(dtype).to(value.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


class TrainedVector(nn.Module):  # type: ignore[misc]
    """A norm's weight or a bias in training, as the file will store it: rounded to its dtype."""

    def __init__(self, value: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.value = nn.Parameter(value.detach().float().clone())

    def forward(self) -> torch.Tensor:
        """float32: the numbers that are stored."""
        return _Round.apply(self.value, self.dtype)

    @torch.no_grad()
    def read_off(self) -> torch.Tensor:
        """The tensor to store, of the source's dtype and shape."""
        return self.value.to(self.dtype).cpu()
