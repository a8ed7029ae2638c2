"""Bytes of keys and values that attention keeps, from a model's config.

The cache is in 16 bits, as vLLM and transformers have it for models of 16 bits. Layers are those of
`layer_types`, as transformers' configs write them; without it all are alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ITEM_BYTES = 2
_WINDOW_OF = {
    "full_attention": None,
    "sliding_attention": "sliding_window",
    "chunked_attention": "attention_chunk_size",
}
# Fields of models that keep a state of their own instead of, or besides, keys and values.
_OTHER_STATES = ("linear_num_key_heads", "mamba_d_state", "mamba_d_ssm", "ssm_cfg", "state_size")


@dataclass(frozen=True)
class CacheRule:
    """What one sequence's cache takes.

    layers: (bytes a token, window) of each layer that keeps keys and values; a window bounds the
        tokens that are kept, None does not.
    key_value_heads: that tensor parallelism can give to different GPUs; 1 where every GPU keeps
        all of the cache.
    """

    layers: tuple[tuple[int, int | None], ...]
    key_value_heads: int

    @property
    def bytes_per_token(self) -> int:
        """Of all layers, before any window is full."""
        return sum(nbytes for nbytes, _ in self.layers)

    def nbytes(self, tokens: int, parts: int = 1) -> int:
        """Bytes of a sequence of so many tokens, on each of `parts` GPUs.

        A key and value head is on one GPU, or on several where there are more GPUs than heads.
        """
        kept = sum(
            nbytes * min(tokens, window or tokens)  # the tokens that a layer still needs
            for nbytes, window in self.layers
        )
        return math.ceil(kept / min(parts, self.key_value_heads))


def cache_rule(config: Mapping[str, Any]) -> CacheRule | str:
    """The rule for a text model's config, or in a line why there is none.

    config: config.json, or its `text_config` where it has one.
    """
    if config.get("is_encoder_decoder"):
        return "an encoder and a decoder keep different caches"
    for field in _OTHER_STATES:
        if config.get(field):
            return f"layers keep a state of their own ({field})"
    layers = number(config, "num_hidden_layers", "n_layer", "num_layers")
    heads = number(config, "num_attention_heads", "n_head")
    hidden = number(config, "hidden_size", "n_embd", "d_model")
    if not (layers and heads and hidden):
        return "config.json does not tell layers, heads and width"
    if number(config, "kv_lora_rank"):  # DeepSeek's MLA, as vLLM keeps it: one vector for all heads
        width = number(config, "kv_lora_rank") + number(config, "qk_rope_head_dim")
        return CacheRule(((width * _ITEM_BYTES, None),) * layers, 1)
    if config.get("global_head_dim") or config.get("attention_k_eq_v"):
        return "layers have heads of different widths"
    shared = 1 if config.get("multi_query") else heads
    key_value_heads = number(config, "num_key_value_heads", "num_kv_heads", "n_head_kv") or shared
    head_dim = number(config, "head_dim") or hidden // heads
    nbytes = 2 * key_value_heads * head_dim * _ITEM_BYTES
    windows = _windows(config, layers)
    if isinstance(windows, str):
        return windows
    own = layers - number(config, "num_kv_shared_layers")  # the last ones read another layer's
    return CacheRule(tuple((nbytes, window) for window in windows[:own]), key_value_heads)


def number(config: Mapping[str, Any], *fields: str) -> int:
    """The first of these fields that is a positive integer, 0 where none is."""
    values = (config.get(field) for field in fields)
    return next((value for value in values if type(value) is int and value > 0), 0)


def _windows(config: Mapping[str, Any], layers: int) -> list[int | None] | str:
    """The window of each layer, or why it is not known."""
    types = config.get("layer_types")
    if not isinstance(types, list) or len(types) != layers:
        sliding = config.get("use_sliding_window", True)
        return [number(config, "sliding_window") or None if sliding else None] * layers
    found: list[int | None] = []
    for kind in types:
        if kind not in _WINDOW_OF:
            return f"layers of type {kind} keep a state of their own"
        field = _WINDOW_OF[kind]
        found.append(number(config, field) or None if field else None)
    return found
