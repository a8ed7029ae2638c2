"""One native call for all blocks of a Llama-like model when a few new tokens a sequence come."""

from tritllm.integrations.transformers.native_step.model import MODELS, use_native_step

__all__ = ["MODELS", "use_native_step"]
