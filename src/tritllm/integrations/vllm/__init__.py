"""Packed checkpoints inside vLLM: `LLM(model=PACKED)` and `vllm serve PACKED`, without a flag.

vLLM finds `plugin.register` by the entry point `vllm.general_plugins` and calls it in each of its
processes. Nothing here is imported elsewhere, and vLLM is no dependency.
"""
