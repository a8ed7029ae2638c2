"""The logits of a native step, without what transformers does around a decoder and an output layer.

Its forward of a model for text calls the decoder as a module, has it make an output object, slices
its states, calls the output layer, makes an output object again and looks whether a tuple was
asked for. The forward here makes the second object, of a step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from tritllm.integrations.transformers.compat import output_of
from tritllm.integrations.transformers.native_step.families import MODELS
from tritllm.integrations.transformers.native_step.model import NativeStepModel

# Whose logits are what the output layer gives, and which return nothing else but the cache.
_PLAIN = (
    "BitNetForCausalLM", "LlamaForCausalLM", "MistralForCausalLM", "Phi3ForCausalLM",
    "Qwen2ForCausalLM", "Qwen3ForCausalLM",
)  # fmt: skip
_SOURCES = {family.source for family in MODELS.values()}


def has_plain_logits(kind: type) -> bool:
    """Whether a class of models is one whose forward `NativeLogits` knows."""
    stock = kind.__dict__.get("stock", kind)
    return stock.__name__ in _PLAIN and stock.__module__ in _SOURCES


class NativeLogits(nn.Module):  # type: ignore[misc]
    """A model for text, a packed one, around a decoder that may have a native step."""

    stock: Any

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """As transformers defines it."""
        decoder = self._modules["model"]
        if (
            labels is None
            and type(logits_to_keep) is int
            and isinstance(decoder, NativeStepModel)
            and self._returns_objects(kwargs)
        ):
            asked = {name: value for name, value in kwargs.items() if name != "return_dict"}
            hidden = decoder.states_of_step(
                input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache,
                asked,
            )  # fmt: skip
            if hidden is not None:
                if 0 < logits_to_keep < hidden.shape[1]:
                    hidden = hidden[:, -logits_to_keep:]
                return output_of(
                    CausalLMOutputWithPast,
                    logits=self.lm_head(hidden),
                    past_key_values=past_key_values,
                )
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def _returns_objects(self, asked: dict[str, Any]) -> bool:
        """Whether transformers' own forward is there, and is to return an output object."""
        if getattr(self.stock.forward, "__module__", None) != self.stock.__module__:
            return False
        wanted = asked.get("return_dict")
        return bool(self.config.return_dict if wanted is None else wanted)
