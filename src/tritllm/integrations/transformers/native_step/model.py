"""Models whose decode step is one native call.

For every token a block of the Llama family runs some thirty small torch operators around its packed
products. `use_native_step` gives such a model a forward that lets native code do the whole stack of
blocks, when one token a sequence comes, on a CPU, with prepared weights and transformers' usual
growing cache. Everything else (prefill, gradients, torch.compile, hooks, sliding windows, other
caches) takes transformers' own forward.

Numbers: inside a block everything is float32, where transformers rounds to the model's dtype after
every operator.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch.nn.modules import module as torch_module
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from tritllm.integrations.transformers.native_step.blocks import (
    blocks_of,
    can_be_native,
    native_blocks,
    vector,
)
from tritllm.integrations.transformers.native_step.cache import preallocated
from tritllm.integrations.transformers.native_step.watch import Watch
from tritllm.ops import cpu_kernels
from tritllm.step import native_step as block_step

# Models whose blocks are what native/include/tritllm_step.h says.
MODELS = {
    "LlamaModel": "transformers.models.llama.modeling_llama",
    "MistralModel": "transformers.models.mistral.modeling_mistral",
    "Qwen2Model": "transformers.models.qwen2.modeling_qwen2",
    "Qwen3Model": "transformers.models.qwen3.modeling_qwen3",
}
_PARTS = "_tritllm_native_step"
# What a caller may ask for that only transformers' own forward gives.
_UNUSUAL = ("output_hidden_states", "output_attentions", "return_dict")


def use_native_step(model: torch.nn.Module) -> bool:
    """Give the model, or the one inside it, the native decode step; whether there is one for it."""
    if not cpu_kernels.available():
        return False
    for module in model.modules():
        kind = type(module)
        if MODELS.get(kind.__name__) == kind.__module__:
            if not issubclass(kind, NativeStepModel):
                # The class is swapped, because nn.Module looks `forward` up for each call and
                # whoever wraps, hooks, compiles or copies the model must meet an ordinary method;
                # an instance attribute would be lost by pickling and hidden from isinstance.
                module.__class__ = _with_native_step(kind)
            return True
    return False


def _with_native_step(kind: type) -> type:
    """A subclass under the same name, which is what transformers and accelerate look at."""
    body = {"__module__": kind.__module__, "stock": kind}
    return type(kind.__name__, (NativeStepModel, kind), body)


class NativeStepModel(torch.nn.Module):  # type: ignore[misc]
    """A decoder with a native step. Copies and pickles are of the stock class."""

    stock: type

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers defines it."""
        if not torch.compiler.is_compiling() and type(past_key_values) is DynamicCache:
            hidden = self._native(
                input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache,
                kwargs,
            )  # fmt: skip
            if hidden is not None:
                return BaseModelOutputWithPast(
                    last_hidden_state=hidden, past_key_values=past_key_values
                )
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )

    def _native(
        self,
        input_ids: torch.Tensor | None,
        mask: Any,
        position_ids: torch.Tensor | None,
        past: DynamicCache,
        embeds: torch.Tensor | None,
        use_cache: bool | None,
        kwargs: dict[str, Any],
    ) -> torch.Tensor | None:
        """Hidden states [B, 1, H] after the final norm; None where the call is not a step."""
        tokens = input_ids if embeds is None else embeds
        if tokens is None or (input_ids is None) == (embeds is None) or tokens.shape[1] != 1:
            return None
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if not use_cache or torch.is_autocast_enabled("cpu") or _global_hooks():
            return None
        if any(kwargs.get(name) is not None for name in _UNUSUAL):
            return None
        parts = self.__dict__.get(_PARTS)
        if parts is None or not parts.watch.unchanged():
            parts = self.__dict__[_PARTS] = _Parts(self)
        if parts.blocks is None or not parts.watch.may_be_bypassed():
            return None
        cache = preallocated(past, parts.blocks, parts.dtype)
        if cache is None or not _fits(mask, tokens.shape[0], cache.tokens + 1):
            return None
        hidden = self.embed_tokens(input_ids) if embeds is None else embeds.clone()
        if type(hidden) is not torch.Tensor or hidden.requires_grad or not cache.accepts(hidden):
            return None
        if position_ids is None:
            position_ids = torch.tensor([[cache.tokens]])
        cos, sin = self.rotary_emb(hidden, position_ids)
        if not _rotary_fits(cos, sin, hidden, parts.head_dim):
            return None
        hidden = hidden.contiguous()
        final_norm = vector(self.norm.weight), self.norm.variance_epsilon
        cache.step(past, parts.blocks, final_norm, hidden, cos, sin, mask)
        return hidden

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Of the stock class, without addresses."""
        state = {name: value for name, value in self.__dict__.items() if name != _PARTS}
        return torch.nn.Module.__new__, (self.stock,), state


class _Parts:
    """What a step needs of a model, as long as the watch sees no change."""

    blocks: ctypes.Array[block_step.Block] | None

    def __init__(self, model: Any) -> None:
        blocks = blocks_of(model)
        self.watch = Watch(model, blocks)
        self.dtype = model.norm.weight.dtype
        self.head_dim = blocks[0].attention.head_dim if blocks else 0
        native = can_be_native(model, blocks)
        self.blocks = native_blocks(blocks, self.dtype) if native else None


def _global_hooks() -> bool:
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


def _fits(mask: Any, batch: int, tokens: int) -> bool:
    """Whether a mask is none, or the usual one: [B, T], nonzero for a token that is seen."""
    return mask is None or (isinstance(mask, torch.Tensor) and mask.shape == (batch, tokens))


def _rotary_fits(cos: torch.Tensor, sin: torch.Tensor, hidden: torch.Tensor, width: int) -> bool:
    return bool(
        cos.dtype is sin.dtype is hidden.dtype
        and cos.shape == sin.shape
        and cos.shape[1:] == (1, width)
        and cos.shape[0] in (1, hidden.shape[0])
        and cos.is_contiguous()
        and sin.is_contiguous()
    )
