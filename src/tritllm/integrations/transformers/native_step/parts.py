"""What the native step holds of a model, and whether it still is what the model would compute."""

from __future__ import annotations

import copy
import ctypes
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from tritllm.integrations.transformers.compat import attention_of
from tritllm.integrations.transformers.experts import TritExpert, TritExperts
from tritllm.integrations.transformers.native_step.blocks import (
    can_be_native,
    epsilon_of,
    native_blocks,
    vector,
    vectors_of,
)
from tritllm.integrations.transformers.native_step.families import (
    Block,
    Family,
    blocks_of,
    family_of,
)
from tritllm.integrations.transformers.native_step.rotary import RotaryTables
from tritllm.integrations.transformers.native_step.watch import WatchedModule, kind_of, watch
from tritllm.native import structures
from tritllm.ops import changes
from tritllm.ops.backends.cpu import superblock_rows
from tritllm.ops.mode import ARITHMETIC
from tritllm.ops.planes import MOST
from tritllm.ops.trit_linear import TritLinear
from tritllm.step import native_step as block_step

_ADDRESS = torch.Tensor.data_ptr


class Parts:
    """A model's blocks by address, made anew when anything changes.

    `unchanged` and `may_be_bypassed` are asked once a token, hence the care about time. Modules
    tell of their changes themselves (`watch`), new hooks are told by torch's number of hooks. What
    nobody tells is looked at: `parameter.data = other` gives a norm's weight or a bias other
    memory, and a config has no setter that could be watched. Layers that read another number of
    planes have changed nothing: there are blocks for every such choice, made when it is first met.
    """

    def __init__(self, model: Any) -> None:
        # Before looking, so that a change made meanwhile is seen at the next token.
        self._changes, self._handles = changes.count(), RemovableHandle.next_id
        self._config = model.config
        self._settings = _copied(vars(model.config))
        family = family_of(model)
        assert family is not None  # or there is no native forward that asks
        self.family: Family = family
        self._asks_for_more = _asks_for_more(model.config, self.family)
        self.turned, self.dtype = 0, torch.float32
        self._modules: list[Block] = []  # none where the model is not native now
        self._linears: list[dict[str, Any]] = []
        self._made: dict[tuple[int, ...], ctypes.Array[block_step.Block]] = {}
        modules = list(model.modules())
        news = [m for m in modules if _is_known(m) and not isinstance(m, WatchedModule)]
        for module in modules:
            if _is_known(module):
                watch(module)
        if news:  # setting their classes was counted
            self._changes = changes.count()
        self._vectors: list[torch.Tensor] = []
        self._addresses: list[int] = []
        hooks = [h for m in modules for h in (m._forward_hooks, m._forward_pre_hooks)]
        self._hooked = [listening for listening in hooks if listening]
        if any("forward" in module.__dict__ for module in modules):
            return
        try:
            blocks = blocks_of(model, self.family)
        except (AttributeError, ValueError):  # other parts, as of somebody's own module
            return
        if not can_be_native(model, blocks, self.family) or not self._find_rotary(model, blocks):
            return
        self.dtype = model.norm.weight.dtype
        self._embedding = model.embed_tokens
        self._reads_rows = kind_of(self._embedding) is nn.Embedding and (
            self._embedding.max_norm is None
        )
        self._modules = blocks
        self._linears = [linear.__dict__ for block in blocks for linear in block.linears()]
        self._find_blocks()
        self._vectors = [model.norm.weight, *(v for block in blocks for v in vectors_of(block))]
        self._addresses = [tensor.data_ptr() for tensor in self._vectors]
        self.final_norm = vector(model.norm.weight), epsilon_of(model.norm)

    def _find_rotary(self, model: Any, blocks: list[Block]) -> bool:
        """Whether the positions of all layers are rotated by one table, or by two."""
        module = model.rotary_emb
        self._tables: list[str | None] = [None]
        if isinstance(module.rope_type, dict):
            self._tables = sorted({block.kind for block in blocks}, key=str)
        if len(self._tables) > 2:
            return False
        self.rotary = [RotaryTables(module, kind) for kind in self._tables]
        widths = {2 * tables.frequencies.numel() for tables in self.rotary}
        self.turned = max(widths)
        return len(widths) == 1 and self.turned % block_step.HEAD_MULTIPLE == 0

    def unchanged(self) -> bool:
        """Whether every module and tensor is what and where it was."""
        return (
            changes.count() == self._changes
            and RemovableHandle.next_id == self._handles
            and vars(self._config) == self._settings
            and list(map(_ADDRESS, self._vectors)) == self._addresses
        )

    @property
    def blocks(self) -> ctypes.Array[block_step.Block] | None:
        """Those that read as many planes as the layers do; None where the model is not native."""
        if not self._modules:
            return None
        if changes.planes_count() != self._planes:
            self._find_blocks()
        return self._blocks

    def prompt_blocks(self, rows: int) -> ctypes.Array[block_step.Block] | None:
        """The same for a prompt of so many rows; None for a mixture, whose experts get few of them
        each: those transformers' own forward multiplies by what suits their number.
        """
        if not self._modules or any(block.mixture is not None for block in self._modules):
            return None
        arithmetic = self._arithmetic()
        if arithmetic == structures.GROUPS and rows >= superblock_rows():
            arithmetic = structures.SUPERBLOCKS
        return self._blocks_of(arithmetic)

    def _find_blocks(self) -> None:
        self._planes = changes.planes_count()
        self._blocks = self._blocks_of(self._arithmetic())

    def _arithmetic(self) -> int:
        return ARITHMETIC[self._modules[0].q.mode]

    def _blocks_of(self, arithmetic: int) -> ctypes.Array[block_step.Block]:
        key = (arithmetic, *(linear[MOST] for linear in self._linears))
        if key not in self._made:
            self._made[key] = native_blocks(
                self._modules, self.family, self.dtype, self._tables, self.turned, arithmetic
            )
        return self._made[key]

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """What the model's embeddings make of ids int [B, T]: hidden states [B, T, H]."""
        if self._reads_rows:  # what the module does, and then what torch's function looks at
            return torch.embedding(self._embedding.weight, ids)
        hidden: torch.Tensor = self._embedding(ids)
        return hidden

    def may_be_bypassed(self) -> bool:
        """Whether nobody listens to the modules, and nothing is asked that a step has not."""
        return not self._asks_for_more and not any(self._hooked)


def _copied(settings: dict[str, Any]) -> dict[str, Any]:
    """A config's attributes; of lists and dicts copies, which do not change with them."""
    return {n: copy.copy(v) if isinstance(v, list | dict) else v for n, v in settings.items()}


def _asks_for_more(config: Any, family: Family) -> bool:
    """Whether a config asks for what a step has not."""
    return bool(
        config.output_attentions
        or config.output_hidden_states
        or getattr(config, "output_router_logits", False)
        or attention_of(config) not in family.attentions
    )


def _is_known(module: Any) -> bool:
    """Whether the class is one of those that a model of the family is made of."""
    kind = kind_of(module)
    own = kind in (TritLinear, TritExpert, TritExperts)
    return own or kind.__module__.startswith(("transformers.", "torch.nn.modules."))
