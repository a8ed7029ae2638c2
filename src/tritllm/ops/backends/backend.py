"""What a device's backend says of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch


class Prepared(NamedTuple):
    """A matrix in a device's own layout: memory uint8 [bytes], and the layout's number."""

    memory: torch.Tensor
    layout: int


class Prepare(Protocol):
    """Makes prepared memory of the portable tensors (definitions.py)."""

    def __call__(
        self,
        planes: torch.Tensor,
        scale: torch.Tensor,
        steps: torch.Tensor,
        in_features: int,
        part_rows: Sequence[int] | None = None,
    ) -> Prepared:
        """Raises ValueError for bytes that are no trits, RuntimeError where it cannot run."""


@dataclass(frozen=True)
class Backend:
    """Kernels of operators, for one of torch's dispatch keys.

    Attributes:
        key: torch's dispatch key, such as "CPU" or "CUDA".
        kernels: operator's name -> function of the operator's arguments.
        device: type of the devices for which `prepare` makes memory; None: it makes none.
        available: whether `prepare` and what reads its memory can run here.
    """

    key: str
    kernels: dict[str, Callable[..., Any]]
    device: str | None = None
    prepare: Prepare | None = None
    available: Callable[[], bool] = lambda: True
