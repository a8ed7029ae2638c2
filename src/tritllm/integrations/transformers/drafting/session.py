"""The model that drafts during one call of generate, and the cache it drafts on."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from tritllm.errors import TritError
from tritllm.integrations.transformers.drafting.pace import MOST_DRAFTED


class Session:
    """A draft model, its cache, and what else its forward takes.

    Own planes draft on the verified model's cache: the keys and values of verified tokens are the
    whole model's, better than the draft's own and there already, and those of drafted tokens are
    taken off again before the whole model writes its own there.

    Args:
        model: drafts.
        cache: the verified model's for its own planes; None makes one.
        model_kwargs: those of generate's loop, of which the mask and the positions are used.
        length: the longest sequence there will be.

    Raises TritError for a batch, and for positions that are not a row of numbers.
    """

    def __init__(
        self, model: Any, cache: Any, model_kwargs: dict[str, Any], prompt: int, length: int
    ) -> None:
        self._model = model
        if cache is None:
            cache = DynamicCache(config=model.config)
            cache.activate_past_recording()
        self._cache = cache
        more = length + MOST_DRAFTED + 1 - prompt
        self._mask, self._positions = model_kwargs.get("attention_mask"), None
        if self._mask is not None:
            self._mask = torch.nn.functional.pad(self._mask, (0, more), value=1)
        positions = model_kwargs.get("position_ids")
        if positions is not None:
            if positions.shape != (1, prompt):
                raise TritError("draft: a model whose positions are not one row cannot draft")
            last = torch.arange(1, more + 1, device=positions.device) + positions[:, -1:]
            self._positions = torch.cat([positions, last], dim=-1)
        accepted = inspect.signature(model.forward).parameters
        self._more = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    def pending(self, ids: torch.Tensor) -> int:
        """Tokens of ids that the cache does not hold yet."""
        return int(ids.shape[1] - self._cache.get_seq_length())

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits [1, V] of the token after ids [1, L], of which the cache then holds all."""
        begin, end = self._cache.get_seq_length(), ids.shape[1]
        out = self._model(
            input_ids=ids[:, begin:],
            attention_mask=None if self._mask is None else self._mask[:, :end],
            position_ids=None if self._positions is None else self._positions[:, begin:end],
            past_key_values=self._cache,
            use_cache=True,
            **self._more,
        )
        return out.logits[:, -1]

    def shorten(self, tokens: int) -> None:
        """Take all tokens but the first so many off the cache, in place."""
        extra = self._cache.get_seq_length() - tokens
        if extra > 0:
            self._cache.crop(-extra)
