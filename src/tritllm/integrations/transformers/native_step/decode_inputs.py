"""What transformers' generate gives the model for one token more, made with few operators.

Between two tokens generate looks for the model's device in all its modules, makes the next position
with six operators and slices it off again. Where sequences just go on, on the CPU with a cache
whose memory the native step uses, the same inputs are made here from positions that are laid out
ahead. All else is left to transformers: a call with other arguments, and models whose class has its
own way.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from transformers import GenerationMixin

from tritllm.integrations.transformers.native_step.cache import CACHES

_TOKENS_AHEAD = 64
_AHEAD = "_tritllm_ahead"  # of a tensor that `_longer` returned: the memory that it is a view of
# What generate holds for a model that only reads a text.
_OTHERS = ("attention_mask", "logits_to_keep", "past_key_values", "use_cache")
_HELD = {"position_ids", *_OTHERS}
_GIVEN = {"next_sequence_length", *_HELD}


def next_arguments(model: Any, outputs: Any, held: dict[str, Any]) -> dict[str, Any] | None:
    """As `_update_model_kwargs_for_generation` after one token; None to have transformers do it.

    outputs: the model's. held: generate's arguments for the model, which are changed.
    """
    kind: type = type(model)
    if held.keys() != _HELD or not _is_plain(kind):
        return None
    past, positions, mask = held["past_key_values"], held["position_ids"], held["attention_mask"]
    if outputs.past_key_values is not past or not _is_on_cpu(past):
        return None
    if not _goes_on(positions) or not (mask is None or _goes_on(mask)):
        return None
    held["position_ids"] = _longer(positions, _next_positions)
    if mask is not None:
        held["attention_mask"] = _longer(mask, _ones)
    return held


def next_inputs(input_ids: torch.Tensor, given: dict[str, Any]) -> dict[str, Any] | None:
    """As `prepare_inputs_for_generation` for one token; None to have transformers do it.

    input_ids: int [B, T], all tokens. given: the other arguments by their names.
    """
    if given.keys() != _GIVEN or given["next_sequence_length"] != 1:
        return None
    positions = given["position_ids"]
    if not hasattr(positions, _AHEAD) or not _goes_on(input_ids):
        return None  # not what `next_arguments` made
    inputs = {"input_ids": _last(input_ids), "position_ids": _last(positions)}
    for name in _OTHERS:
        if given[name] is not None:
            inputs[name] = given[name]
    return inputs


def _is_on_cpu(past: Any) -> bool:
    """Whether a cache is one whose memory the native step has used, on the CPU."""
    if type(past) not in CACHES or not past.layers:
        return False
    room = vars(past.layers[0]).get("room")
    return room is not None and room.keys.device.type == "cpu"


def _goes_on(values: Any) -> bool:
    """Whether these are numbers [B, T] on the CPU."""
    return type(values) is torch.Tensor and values.ndim == 2 and values.device.type == "cpu"


@cache
def _is_plain(kind: type) -> bool:
    """Whether transformers' own definitions, and no model's, make the inputs of a packed class."""
    stock = kind.__dict__.get("stock", kind)
    return stock.__module__.startswith("transformers.") and all(
        getattr(stock, name) is getattr(GenerationMixin, name)
        for name in ("prepare_inputs_for_generation", "_update_model_kwargs_for_generation")
    )


def _last(tokens: torch.Tensor) -> torch.Tensor:
    """The last of each row, [B, 1]."""
    return tokens.narrow(1, tokens.shape[1] - 1, 1).contiguous()


def _longer(values: torch.Tensor, coming: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Values [B, T] and one more for each row: a view of memory with some of what is coming, which
    the next call finds as the view's attribute.
    """
    tokens = values.shape[1] + 1
    ahead = getattr(values, _AHEAD, None)
    if ahead is None or tokens > ahead.shape[1]:
        ahead = torch.cat([values, coming(values)], dim=1)
    longer: torch.Tensor = ahead.narrow(1, 0, tokens)
    setattr(longer, _AHEAD, ahead)
    return longer


def _next_positions(positions: torch.Tensor) -> torch.Tensor:
    ahead = torch.arange(1, 1 + _TOKENS_AHEAD, dtype=positions.dtype)
    return positions[:, -1:] + ahead


def _ones(mask: torch.Tensor) -> torch.Tensor:
    return mask.new_ones((mask.shape[0], _TOKENS_AHEAD))
