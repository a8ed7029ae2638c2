"""LoRA on a packed layer: y = W x + bias + scaling B A dropout(x), W packed and frozen."""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import layer as lora

from tritllm.errors import TritError


class TritLoraLinear(lora.Linear):  # type: ignore[misc]
    """peft's LoRA layer over a TritLinear; all that concerns A and B is peft's own."""

    def __init__(self, base_layer: Any, adapter_name: str, config: Any, **kwargs: Any) -> None:
        super().__init__(base_layer, adapter_name, config=config, **kwargs)
        # peft's "stored as [in, out]", of GPT-2's layers; what is packed never is.
        self.fan_in_fan_out = False

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.in_features, module.out_features

    @property
    def lora_variants(self) -> dict[tuple[str, ...], Any]:
        """Variants of LoRA: none that reads the base's weights."""
        return {(): None}

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: packed weights hold no sum of theirs and an adapter's."""
        raise TritError(
            "a LoRA cannot be merged into packed weights; keep the adapter beside them, or "
            "merge it into the dequantized model"
        )

    def __repr__(self) -> str:
        return super().__repr__().replace("lora.lora.", "lora.", 1)
