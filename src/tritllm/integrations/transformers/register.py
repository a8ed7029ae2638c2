"""Puts our config and quantizer into transformers' tables. Called once, by `registration`."""

from __future__ import annotations

from transformers.quantizers import auto

from tritllm.format.quantization_config import METHOD
from tritllm.integrations.transformers.compat import allow_loading_attributes
from tritllm.integrations.transformers.config import TritConfig
from tritllm.integrations.transformers.quantizer import TritQuantizer


def register() -> None:
    """Register; a second call changes nothing."""
    if METHOD in auto.AUTO_QUANTIZER_MAPPING:
        return
    auto.register_quantization_config(METHOD)(TritConfig)
    auto.register_quantizer(METHOD)(TritQuantizer)
    allow_loading_attributes(TritConfig)
