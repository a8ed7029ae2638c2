"""What a device's backend says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from tritllm.ops.definitions import Packed


class Prepared(NamedTuple):
    """A matrix in a device's own layout: memory uint8 [bytes], and the layout's number.

    planes_together: whether all planes are read or none, where memory with planes apart could also
    be made.
    """

    memory: torch.Tensor
    layout: int
    planes_together: bool = False


@dataclass(frozen=True)
class Backend:
    """Kernels of operators, for one of torch's dispatch keys.

    Attributes:
        key: torch's dispatch key, such as "CPU" or "CUDA".
        kernels: operator's name -> function of the operator's arguments.
        device: type of the devices for which `prepare` makes memory; None: it makes none.
        prepare: makes memory of portable tensors; None for what its layout has no
            room for. Its second argument asks for planes apart, of which fewer can then be read
            where the device can do that. It raises ValueError for bytes that are no trits and
            RuntimeError where it cannot run.
        describe: what computes packed layers on such a device, and why, in a line.
        available: whether `prepare` and what reads its memory can run here.
    """

    key: str
    kernels: dict[str, Callable[..., Any]]
    device: str | None = None
    prepare: Callable[[Packed, bool], Prepared | None] | None = None
    describe: Callable[[], str] = lambda: "torch"
    available: Callable[[], bool] = lambda: True
