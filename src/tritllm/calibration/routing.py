"""Which tokens a mixture's experts get, told by what the mixture is called with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tritllm.integrations.transformers.experts import TritSortedExperts


@dataclass(frozen=True)
class Routes:
    """What experts get, entry by entry, by ascending token: `share` times the hidden states.

    token, expert: int64 [n]. share: float32 [n], or None where all are 1.
    """

    token: np.ndarray
    expert: np.ndarray
    share: np.ndarray | None = None

    def of(self, expert: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The tokens that one expert gets, ascending, and their shares."""
        mine = np.flatnonzero(self.expert == expert)
        return self.token[mine], None if self.share is None else self.share[mine]


def routed(mixture: Any, args: Sequence[Any]) -> tuple[torch.Tensor, Routes]:
    """The hidden states [T, H] of a mixture's call, and how they go to its experts.

    mixture: a `TritExperts`; args: of its forward. Where every expert is given a row of each token,
    times a score, and zeros where it was not chosen, the hidden states are the sums of these rows:
    of a token with one expert, what that expert gets.
    """
    if isinstance(mixture, TritSortedExperts):
        rows = args[0].view(mixture.num_experts, -1, args[0].shape[-1])
        size = torch.linalg.vector_norm(rows, torch.inf, dim=-1).T
        token, expert = torch.where(size > 0)
        share = (size / size.sum(dim=1, keepdim=True))[token, expert]
        return rows.sum(dim=0), Routes(_numpy(token), _numpy(expert), _numpy(share))
    hidden, index = (arg.reshape(-1, arg.shape[-1]) for arg in args[:2])
    token = torch.arange(len(index)).repeat_interleave(index.shape[1])
    return hidden, Routes(_numpy(token), _numpy(index.reshape(-1)))


def joined(batches: Sequence[tuple[int, Routes]]) -> Routes:
    """The routes of all tokens, from those of batches, each with the number of its first token."""
    parts = [routes.share for _, routes in batches if routes.share is not None]
    return Routes(
        np.concatenate([routes.token + first for first, routes in batches]),
        np.concatenate([routes.expert for _, routes in batches]),
        np.concatenate(parts) if parts else None,
    )


def _numpy(values: torch.Tensor) -> np.ndarray:
    return values.detach().cpu().numpy()
