"""One native call for all blocks of a model when a few new tokens a sequence come."""

from tritllm.integrations.transformers.native_step.families import MODELS
from tritllm.integrations.transformers.native_step.model import use_native_step

__all__ = ["MODELS", "use_native_step"]
