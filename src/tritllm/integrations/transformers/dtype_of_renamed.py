"""Dtypes of what a packed checkpoint keeps as floats, where transformers leaves them to us.

Before 5.21 it loads a tensor in the file's dtype, not the model's, if the model has another name
for it: Mixtral's routers, and everything when a class without a head is loaded.
"""

from __future__ import annotations

import torch
from torch import nn

from tritllm.integrations.transformers.compat import kept_in_float32


def float_dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    """The dtype of each float parameter of a model that is not loaded yet."""
    return {name: p.dtype for name, p in model.named_parameters() if p.is_floating_point()}


def cast_renamed(model: nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    """Give loaded parameters the model's own dtypes; those that it keeps in float32 stay."""
    kept = kept_in_float32(model)
    for name, parameter in model.named_parameters():
        dtype = dtypes.get(name, parameter.dtype)
        if parameter.dtype != dtype and not any(part in name for part in kept):
            parameter.data = parameter.data.to(dtype)
