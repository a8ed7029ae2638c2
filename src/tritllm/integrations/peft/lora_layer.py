"""LoRA on a packed layer: y = W x + bias + scaling B A dropout(x), W packed and frozen."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.tuners.lora import layer as lora
from peft.tuners.tuners_utils import check_adapters_to_merge

from tritllm.errors import TritError
from tritllm.integrations.peft.dora import TritDora
from tritllm.integrations.peft.merging import Kept, merge_into
from tritllm.integrations.transformers.layers import float_weight


class TritLoraLinear(lora.Linear):  # type: ignore[misc]
    """peft's LoRA layer over a TritLinear; all that concerns A and B is peft's own.

    Merging encodes the layer again, always from the base's own weights, so that adapters merged one
    after the other are rounded once; `unmerge` gives those weights back, bit for bit.
    """

    def __init__(self, base_layer: Any, adapter_name: str, config: Any, **kwargs: Any) -> None:
        super().__init__(base_layer, adapter_name, config=config, **kwargs)
        # peft's "stored as [in, out]", of GPT-2's layers; what is packed never is.
        self.fan_in_fan_out = False
        self._unmerged: Kept | None = None

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.in_features, module.out_features

    @property
    def lora_variants(self) -> dict[tuple[str, ...], Any]:
        """LoRA itself, and DoRA; the other variants read or change the base's weights."""
        return {(): None, ("use_dora",): TritDora}

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge adapters, by default the active ones; nothing that is not finite gets in.

        Raises TritError as `merge_into`; the layer is then as it was.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.lora_A]
        if not names:
            return
        together = [*self.merged_adapters, *names]
        if len(together) > 1 and any(name in self.lora_variant for name in together):
            raise TritError("a DoRA scales what others would add; merge it alone")
        layer = self.get_base_layer()
        before = Kept.of(layer)
        kept = self._unmerged or before
        kept.restore(layer)
        try:
            parts = [self._added(name) for name in together]
            biases = [bias for _, bias in parts if bias is not None]
            merge_into(layer, sum(w for w, _ in parts), sum(biases) if biases else None)
        except BaseException:
            before.restore(layer)
            raise
        self._unmerged = kept
        self.merged_adapters += names

    def unmerge(self) -> None:
        """Give the layer back the weights that it had before anything was merged."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)  # as peft does
            return
        assert self._unmerged is not None
        self._unmerged.restore(self.get_base_layer())
        self._unmerged = None
        self.merged_adapters.clear()

    @torch.no_grad()
    def _added(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What an adapter adds to the base's weights [N, K] and to its bias."""
        scaling, a, b = self.scaling[name], self.lora_A[name].weight, self.lora_B[name]
        added = self.get_delta_weight(name)
        if name in self.lora_variant:
            layer = self.get_base_layer()
            factor = self.lora_magnitude_vector[name].factor(layer, a, b.weight, scaling)[:, None]
            weight = float_weight(layer, torch.float32)
            weight = weight.t() if layer.transposed else weight
            added = factor * added + (factor - 1) * weight
        return added, b.bias * scaling if self.lora_bias[name] else None
