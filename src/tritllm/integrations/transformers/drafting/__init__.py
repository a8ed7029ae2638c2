"""Speculative decoding: tokens drafted cheaply, then verified by the whole model in one step."""

from tritllm.integrations.transformers.drafting.draft import Draft

__all__ = ["Draft"]
