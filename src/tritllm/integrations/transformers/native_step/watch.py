"""Notices when anything that the native step goes past is replaced, moved, cast or listened to."""

from __future__ import annotations

from operator import is_
from typing import Any

import torch

from tritllm.integrations.transformers import attention
from tritllm.integrations.transformers.compat import attention_of
from tritllm.integrations.transformers.native_step.blocks import Block

_ATTENTIONS = ("sdpa", attention.NAME)
_ADDRESS = torch.Tensor.data_ptr


class Watch:
    """What a model was made of when it was looked at last.

    `unchanged` and `may_be_bypassed` are asked once a token, hence the care about time.
    """

    def __init__(self, model: Any, blocks: list[Block]) -> None:
        self._config = model.config
        modules = [model.embed_tokens, model.norm, model.rotary_emb]
        owners = [(model._modules, name) for name in ("embed_tokens", "layers", "norm")]
        for i, block in enumerate(blocks):
            norms = [norm for norm in block.norms if norm is not None]
            modules += [block.layer, block.attention, block.mlp, *block.linears, *norms]
            owners += [(model.layers._modules, str(i))]
            for module in (block.layer, block.attention, block.mlp):
                owners += [(module._modules, name) for name in module._modules]
            owners += [(linear._buffers, "prepared") for linear in block.linears]
        owners += [(m._parameters, name) for m in modules for name in ("weight", "bias")]
        self._owners = [(owner, name) for owner, name in owners if name in owner]
        self._held = [owner[name] for owner, name in self._owners]
        # A cast or a move gives a parameter other memory; prepared memory is replaced as a whole.
        self._parameters = [held for held in self._held if isinstance(held, torch.nn.Parameter)]
        self._where = [parameter.data_ptr() for parameter in self._parameters]
        self._hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._dicts = [m.__dict__ for m in modules]

    def unchanged(self) -> bool:
        """Whether every module and tensor is what and where it was."""
        now = [owner.get(name) for owner, name in self._owners]
        return all(map(is_, now, self._held)) and self._where == list(
            map(_ADDRESS, self._parameters)
        )

    def may_be_bypassed(self) -> bool:
        """Whether calling each module does what its class says, and nobody listens."""
        if any(self._hooks) or any("forward" in own for own in self._dicts):
            return False
        config = self._config
        return not (config.output_attentions or config.output_hidden_states) and (
            attention_of(config) in _ATTENTIONS
        )
