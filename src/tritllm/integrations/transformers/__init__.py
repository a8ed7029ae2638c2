"""Packed checkpoints inside transformers: `AutoModelForCausalLM.from_pretrained(PACKED)`."""

# First, so that the registration it sets off does not meet this package half imported.
import transformers.quantizers.auto  # noqa: F401

from tritllm.integrations.transformers.config import TritConfig
from tritllm.integrations.transformers.drafting import Draft
from tritllm.integrations.transformers.int8_cache import Int8Cache
from tritllm.integrations.transformers.load_model import load_model
from tritllm.integrations.transformers.quantizer import TritQuantizer
from tritllm.ops.trit_linear import TritLinear

__all__ = ["Draft", "Int8Cache", "TritConfig", "TritLinear", "TritQuantizer", "load_model"]
