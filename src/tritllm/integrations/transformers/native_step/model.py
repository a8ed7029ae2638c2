"""Models whose decode step is one native call.

For every token a block runs some thirty small torch operators around its packed products.
`use_native_step` gives such a model a forward that lets native code do the whole stack of blocks,
when a few tokens a sequence come (one, or a draft to verify), on a CPU, with prepared weights and
transformers' usual growing cache; so it does some hundred tokens of a prompt at a time, where that
is faster (`prompts`). Everything else (gradients, torch.compile, hooks, other caches) takes
transformers' own forward.

Numbers: inside a block everything is float32, where transformers rounds to the model's dtype after
every operator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules import module as torch_module

from tritllm.integrations.transformers.compat import output_of
from tritllm.integrations.transformers.native_step import prompts
from tritllm.integrations.transformers.native_step.cache import CACHES, preallocated
from tritllm.integrations.transformers.native_step.families import family_of
from tritllm.integrations.transformers.native_step.parts import Parts
from tritllm.integrations.transformers.native_step.watch import WatchedModule, kind_of, subclass
from tritllm.native.structures import STEP_TOKENS
from tritllm.ops.trit_linear import TritLinear

_PARTS = "_tritllm_native_step"
# What a caller may ask for that only transformers' own forward gives.
_UNUSUAL = ("output_hidden_states", "output_attentions", "return_dict")


def use_native_step(model: torch.nn.Module) -> bool:
    """Give the model, or the one inside it, the native decode step; whether there is one for it."""
    layers = [module for module in model.modules() if isinstance(module, TritLinear)]
    if all(layer.prepared is None for layer in layers):
        return False
    for module in model.modules():
        if family_of(module) is not None:
            if not isinstance(module, NativeStepModel):
                # The class is swapped, because nn.Module looks `forward` up for each call and
                # whoever wraps, hooks, compiles or copies the model must meet an ordinary method;
                # an instance attribute would be lost by pickling and hidden from isinstance.
                module.__class__ = subclass(kind_of(module), NativeStepModel)
            return True
    return False


class NativeStepModel(WatchedModule):
    """A decoder with a native step. Copies and pickles are of the stock class."""

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
        hidden = self.states_of_step(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache,
            kwargs,
        )  # fmt: skip
        if hidden is not None:
            kind = self.__dict__[_PARTS].family.output
            return output_of(kind, last_hidden_state=hidden, past_key_values=past_key_values)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )

    def states_of_step(
        self,
        input_ids: torch.Tensor | None,
        mask: Any,
        position_ids: torch.Tensor | None,
        past: Any,
        embeds: torch.Tensor | None,
        use_cache: bool | None,
        kwargs: dict[str, Any],
    ) -> torch.Tensor | None:
        """Hidden states [B, T, H] after the final norm; None where the call is not a step.

        The arguments are those of forward, and its others by their names.
        """
        if torch.compiler.is_compiling() or type(past) not in CACHES:
            return None
        tokens = input_ids if embeds is None else embeds
        if tokens is None or (input_ids is None) == (embeds is None):
            return None
        batch, new = tokens.shape[:2]
        is_prompt = new > STEP_TOKENS
        if new < 1 or (is_prompt and not prompts.pays()):
            return None
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if not use_cache or torch.is_autocast_enabled("cpu") or _global_hooks():
            return None
        if kwargs and _is_unusual(kwargs):
            return None
        parts = self.__dict__.get(_PARTS)
        if parts is None or not parts.unchanged():
            parts = self.__dict__[_PARTS] = Parts(self)
        blocks = parts.prompt_blocks(batch * new) if is_prompt else parts.blocks
        if blocks is None or not parts.may_be_bypassed():
            return None
        if is_prompt and not prompts.fits(self, past, blocks, new):
            return None
        cache = preallocated(past, blocks, parts.dtype, batch, new)
        if cache is None or not _fits(mask, batch, cache.tokens + new):
            return None
        hidden = parts.embed(input_ids) if embeds is None else embeds.clone()
        if type(hidden) is not torch.Tensor or hidden.requires_grad or not cache.accepts(hidden):
            return None
        if position_ids is None:
            position_ids = torch.arange(cache.tokens, cache.tokens + new)[None]
        rotary = [tables.at(hidden, position_ids) for tables in parts.rotary]
        if not _rotary_fits(rotary, hidden, parts.turned):
            return None
        hidden = hidden.contiguous()
        run = cache.prompt if is_prompt else cache.step
        run(blocks, parts.final_norm, hidden, rotary, mask)
        return hidden

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Of the stock class, without addresses."""
        made_by, arguments, state = super().__reduce_ex__(protocol)
        return made_by, arguments, {n: v for n, v in state.items() if n != _PARTS}


def _is_unusual(asked: dict[str, Any]) -> bool:
    """Whether forward's other arguments ask for what only transformers' own gives."""
    return bool(
        any(asked.get(name) is not None for name in _UNUSUAL) or asked.get("output_router_logits")
    )


def _global_hooks() -> bool:
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


def _fits(mask: Any, batch: int, tokens: int) -> bool:
    """Whether a mask is none, or the usual one: [B, tokens], nonzero for one that is seen."""
    return mask is None or (isinstance(mask, torch.Tensor) and mask.shape == (batch, tokens))


def _rotary_fits(
    rotary: list[tuple[torch.Tensor, torch.Tensor]], hidden: torch.Tensor, width: int
) -> bool:
    rows = rotary[0][0].shape[0]
    return rows in (1, hidden.shape[0]) and all(
        x.dtype is hidden.dtype and x.shape == (rows, hidden.shape[1], width) and x.is_contiguous()
        for table in rotary
        for x in table
    )
