"""Packed layers of which a model asks what dtype their weight has, to cast activations to it.

T5 casts what goes into `wo` to the dtype of its weight, Mamba what goes into its output layer:
float32 where transformers keeps the weight in float32, so that float16 does not overflow. Asked for
the dtype, such a layer tells that of the float weight which it stands for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tritllm.integrations.transformers.compat import kept_dtype
from tritllm.integrations.transformers.layers import packed_layers
from tritllm.ops.trit_linear import TritLinear
from tritllm.quantizer.decisions import is_asked_for_dtype


class TritLinearOfDtype(TritLinear):
    """A packed layer whose `weight` is an empty tensor of the float weight's dtype and device.

    The packed planes are the buffer of that name, as in every packed layer: they are what is
    computed with, saved and loaded. Casts change the dtype as they would that of a float weight.
    """

    like: torch.Tensor

    @property
    def weight(self) -> torch.Tensor:
        """Nothing but a dtype and a device."""
        return self.like

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        self.like = fn(self.like)
        return super()._apply(fn, recurse)


def tell_dtypes(model: nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    """Have the packed layers whose weight the model asks for its dtype tell it.

    dtypes: of the model's float parameters before it was loaded, by their names.
    """
    for name, layer in packed_layers(model).items():
        if is_asked_for_dtype(name, model.config.model_type):
            dtype = kept_dtype(model, f"{name}.weight", dtypes.get(f"{name}.weight", model.dtype))
            device = layer.weight.device
            layer.like = torch.empty(0, dtype=dtype, device=device)
            layer.__class__ = TritLinearOfDtype
