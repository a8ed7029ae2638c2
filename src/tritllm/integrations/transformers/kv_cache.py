"""Which models can keep keys and values as int8, told before anything runs."""

from __future__ import annotations

from typing import Any

from tritllm.errors import TritError
from tritllm.native.structures import CACHE_GROUP

INT8 = "int8"
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}  # kinds of layers


def check_kv_cache(kind: str | None, model: Any) -> None:
    """Raise TritError for a name that no cache has, and for a model whose layers an `Int8Cache` is
    not for: heads of another width, latent attention, or layers that are not attention.
    """
    if kind is None:
        return
    if kind != INT8:
        raise TritError(f"kv_cache {kind!r:.40} is not {INT8!r}")
    config = model.config.get_text_config(decoder=True)
    width = getattr(config, "head_dim", None)
    if width is None and getattr(config, "num_attention_heads", None):
        width = config.hidden_size // config.num_attention_heads
    kinds = set(getattr(config, "layer_types", None) or ())
    if model.config.is_encoder_decoder or not width or hasattr(config, "kv_lora_rank"):
        reason = "its layers keep more, or other things, than a key and a value a head"
    elif kinds - _ATTENTION:
        reason = f"it has layers of the kind {min(kinds - _ATTENTION)}"
    elif width % CACHE_GROUP:
        reason = f"its heads are {width} wide, not a multiple of {CACHE_GROUP}"
    else:
        return
    raise TritError(f"kv_cache {INT8!r} does not fit {type(model).__name__}: {reason}")
