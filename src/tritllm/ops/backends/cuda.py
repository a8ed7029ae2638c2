"""The Triton kernels on CUDA tensors; without triton, or on an older GPU, torch computes.

Triton is imported when a matrix is first prepared: torch's CUDA builds bring it along, others do
not, and nothing else of this package needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch

from tritllm.format.trits import ENTRIES
from tritllm.ops import mode
from tritllm.ops.backends.backend import Backend, Prepared
from tritllm.ops.definitions import Packed, PreparedArguments
from tritllm.ops.per_token import rounded_per_token
from tritllm.ops.triton_kernels import layout

MIN_CAPABILITY = (8, 0)  # bfloat16 products on tensor cores
_NARROW = {torch.float64: torch.float32}


@cache
def why_not() -> str | None:
    """Why the kernels cannot run in this process, in a few words; None where they can."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    capability = torch.cuda.get_device_capability()
    if torch.version.hip or capability < MIN_CAPABILITY:
        own = ".".join(map(str, capability))
        return (
            f"{torch.cuda.get_device_name()} has compute capability {own}; the kernels need "
            f"{'.'.join(map(str, MIN_CAPABILITY))} or newer of NVIDIA's"
        )
    if find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    return None


def available() -> bool:
    """Whether the kernels can run in this process."""
    return why_not() is None


def runs_as_requested() -> bool:
    """Whether what `TRITLLM_LINEAR` asks for can run here."""
    return mode.requested() == "torch" or available()


def describe() -> str:
    """What computes packed layers on a CUDA device, and why, in a line.

    Raises TritError where an environment variable asks for what cannot be.
    """
    why = "TRITLLM_LINEAR=torch" if mode.requested() == "torch" else why_not()
    if why:
        return f"torch, which decodes the weights at every call: {why}"
    import triton

    return f"Triton {triton.__version__} kernels on {torch.cuda.get_device_name()}"


def prepare(packed: Packed, planes_apart: bool = False) -> Prepared | None:
    """Memory in the kernels' layout, all planes of which are read; None for more parts than it has
    room for.
    """
    if len(packed.part_rows or ()) > layout.MOST_PARTS:
        return None
    return Prepared(layout.prepare(packed), layout.LAYOUT)


def linear_prepared(
    x: torch.Tensor,
    prepared: torch.Tensor,
    steps: torch.Tensor,
    number: int,
    depth: int,
    in_features: int,
    out_features: int,
    arithmetic: int,
    bias: torch.Tensor | None = None,
    part_rows: Sequence[int] | None = None,
    planes: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `definitions` says. Activations keep their dtype, but for those rounded per token."""
    from tritllm.ops.triton_kernels import launch

    PreparedArguments(
        x, prepared, steps, number, depth, in_features, out_features, arithmetic, bias, part_rows
    ).check()
    if number != layout.LAYOUT or prepared.numel() != layout.size(out_features, in_features, depth):
        raise ValueError(
            f"prepared memory of {prepared.numel()} bytes is not that of a matrix "
            f"[{out_features}, {in_features}] of depth {depth} in layout {number}"
        )
    for name, tensor in (("prepared memory is", prepared), ("steps are", steps)):
        if tensor.device != x.device:
            raise ValueError(f"{name} on {tensor.device}, x on {x.device}")
    if arithmetic == mode.ARITHMETIC[mode.PER_TOKEN]:
        x = rounded_per_token(x.detach())
    rows = x.to(_NARROW.get(x.dtype, x.dtype)).reshape(-1, in_features).contiguous()
    with torch.cuda.device_of(x):
        y = launch.linear(rows, prepared, steps.reshape(-1, ENTRIES), depth, out_features, bias)
    return y.to(x.dtype).view(*x.shape[:-1], out_features)


BACKEND = Backend(
    "CUDA", {"linear_prepared": linear_prepared}, "cuda", prepare, describe, available
)
