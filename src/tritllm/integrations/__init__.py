"""Where other libraries meet tritllm: torch operators, transformers, and the commands over them.

Nothing here is imported by `import tritllm` but `registration`, which costs no torch.
"""
