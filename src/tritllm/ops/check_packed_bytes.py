"""The format's rules for readers (docs/format.md) on packed torch tensors, on any device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tritllm.format.layout import CODEBOOK, SCALE, groups_of, part_names
from tritllm.format.trits import TRITS_PER_BYTE

PACKED = part_names("weight")
LARGEST_BYTE = 3**TRITS_PER_BYTE - 1


def check_packed_bytes(name: str, tensor: torch.Tensor, in_features: int) -> None:
    """Check one of a packed layer's three tensors, by its name: weight, weight_scale, ...

    Raises ValueError for a byte that is not five trits, for padding that is not zero, and for a
    codebook that is not finite and ascending from zero or above.
    """
    if name.endswith(CODEBOOK):
        if not bool(tensor.isfinite().all()):
            raise ValueError("codebook holds a value that is not finite")
        if bool((tensor < 0).any() | (tensor.diff(dim=-1) < 0).any()):
            raise ValueError("codebook is not ascending from zero or above")
        return
    trits = 3 * groups_of(in_features) if name.endswith(SCALE) else in_features
    largest = int(tensor.max()) if tensor.numel() else 0
    if largest > LARGEST_BYTE:
        raise ValueError(f"byte {largest} is not five trits (0..{LARGEST_BYTE})")
    used = trits % TRITS_PER_BYTE
    if used and not bool((tensor[..., -1] // 3**used == 3 ** (TRITS_PER_BYTE - used) // 2).all()):
        raise ValueError(f"padding after trit {trits} of a row is not zero")


def faults_in_state(
    state: Mapping[str, Any], prefix: str, own: Mapping[str, Any], in_features: int
) -> list[str]:
    """What is wrong with the packed tensors that a state dict has for a layer, a line a tensor.

    own: the layer's, by name.
    """
    given = ((name, state.get(prefix + name)) for name in PACKED)
    faults = ((n, _fault(n, value, own[n], in_features)) for n, value in given if value is not None)
    return [f"{prefix}{name}: {fault}" for name, fault in faults if fault is not None]


def _fault(name: str, value: Any, own: torch.Tensor, in_features: int) -> str | None:
    if name == "weight" and value.ndim == 3 and value.shape[0] != own.shape[0]:
        return f"depth {value.shape[0]} in the state dict, {own.shape[0]} in the layer"
    if value.dtype != own.dtype or value.shape != own.shape:
        return (
            f"{value.dtype} {list(value.shape)} in the state dict, "
            f"{own.dtype} {list(own.shape)} in the layer"
        )
    try:
        if not value.is_meta:
            check_packed_bytes(name, value, in_features)
    except ValueError as error:
        return str(error)
    return None
