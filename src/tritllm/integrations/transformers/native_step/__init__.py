"""One native call for all blocks of a Llama-like model when one new token a sequence comes."""

from tritllm.integrations.transformers.native_step.model import MODELS, use_native_step

__all__ = ["MODELS", "use_native_step"]
