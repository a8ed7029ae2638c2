"""Merging adapters into packed layers: decode, add, encode again at the layer's depth.

Encoding again rounds, so a merged layer is not the sum: `Losses` says how far it is from it, as a
share of what the adapters add. The rounding is that of the base's own depth (docs/codec.md,
"Measured"), so what an adapter adds must be large beside the base's steps to survive at d=1 or d=2.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from tritllm.codec import encode
from tritllm.errors import TritError
from tritllm.integrations.transformers.normed_linear import NormedTritLinear
from tritllm.ops.numpy_arrays import torch_parts
from tritllm.ops.trit_linear import TritLinear

_CODEC = "v3"
_MERGING: ContextVar[Losses | None] = ContextVar("merging", default=None)


@dataclass
class Losses:
    """Sums over the layers merged so far."""

    layers: int = 0
    error: float = 0.0  # of (merged - (base + added))**2
    added: float = 0.0  # of added**2

    @property
    def share(self) -> float:
        """The error as a share of what was added, both as norms; 0 where nothing was added."""
        return (self.error / self.added) ** 0.5 if self.added else 0.0


@dataclass(frozen=True)
class Kept:
    """What a packed layer held before adapters were merged into it."""

    weight: torch.Tensor
    scale: torch.Tensor
    codebook: torch.Tensor
    bias: torch.Tensor | None

    @classmethod
    def of(cls, layer: TritLinear) -> Kept:
        """Its tensors; encoding makes others, so nothing is copied but the bias."""
        bias = None if layer.bias is None else layer.bias.detach().clone()
        return cls(layer.weight, layer.weight_scale, layer.weight_codebook, bias)

    def restore(self, layer: TritLinear) -> None:
        """Give the layer the same tensors again."""
        layer.weight, layer.weight_scale = self.weight, self.scale
        layer.weight_codebook = self.codebook
        if self.bias is not None:
            layer.bias.data.copy_(self.bias)


def merge_into(layer: TritLinear, added: torch.Tensor, added_bias: torch.Tensor | None) -> None:
    """Have a packed layer hold its weights plus `added` [N, K], as near as its depth allows.

    Raises TritError, before the layer has changed, for a sum that is not finite, a layer that reads
    fewer planes than it holds or has a norm of its own, or a bias to add where there is none.
    """
    if isinstance(layer, NormedTritLinear):
        raise TritError(
            "an adapter cannot be merged into a layer that norms its input, which the adapter "
            "takes as it comes; keep it beside the base"
        )
    if layer.planes < layer.depth:
        raise TritError(
            f"the layer reads {layer.planes} of its {layer.depth} planes, and merging would change "
            "all: model.set_planes(None), or load it with planes="
        )
    if added_bias is not None and layer.bias is None:
        raise TritError("lora_bias=True cannot be merged into a layer without a bias")
    threads = torch.get_num_threads()
    added = added.detach().float().cpu()
    wanted = torch.from_numpy(layer.tensor().decode(threads=threads)).add_(added)
    try:
        found = encode(wanted.numpy(), layer.depth, codec=_CODEC, threads=threads)
    except ValueError as error:
        raise TritError(f"the adapter cannot be merged: {error}") from None
    device = layer.weight.device
    layer.weight, layer.weight_scale, layer.weight_codebook = (
        part.to(device) for part in torch_parts(found)
    )
    if added_bias is not None:
        layer.bias.data.add_(added_bias.detach().to(layer.bias))
    losses = _MERGING.get()
    if losses is not None:
        losses.layers += 1
        losses.error += found.error or 0.0
        losses.added += added.square().sum().item()


@contextmanager
def telling_losses(config: Any) -> Iterator[None]:
    """Within it merges are counted; then a warning says in a line what rounding has cost.

    config: the model's, which no longer says that another encoder chose the digits.
    """
    losses = Losses()
    token = _MERGING.set(losses)
    try:
        yield
    finally:
        _MERGING.reset(token)
    if losses.layers:
        stored = getattr(config, "quantization_config", None)
        if stored is not None:
            stored.encoder, stored.codec = None, _CODEC
        warnings.warn(
            f"merged into {losses.layers} packed layers by encoding them again, which is off by "
            f"{100 * losses.share:.0f} % of what the adapter adds; compare the merged model with "
            "the adapter before you use it",
            UserWarning,
            stacklevel=4,
        )
