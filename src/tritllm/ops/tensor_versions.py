"""Noticing that tensors were written, replaced or moved, as far as torch lets one see."""

from __future__ import annotations

from typing import Any

import torch


def seen_of(planes: torch.Tensor, scale: torch.Tensor, codebook: torch.Tensor) -> Any:
    """What changes when one of the three does: how often each was written, and where it is.

    `forward` spells it out.
    """
    try:
        return (
            planes._version, scale._version, codebook._version,
            planes.data_ptr(), scale.data_ptr(), codebook.data_ptr(),
        )  # fmt: skip
    except RuntimeError:
        return uncounted(planes, scale, codebook)


def uncounted(*tensors: torch.Tensor) -> Any:
    """The same of tensors whose writes torch does not count, or that have no address."""
    try:
        return tuple(tensor.data_ptr() for tensor in tensors)
    except RuntimeError:
        return ()
