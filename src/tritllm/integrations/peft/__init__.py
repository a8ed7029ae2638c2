"""Adapters of peft on packed models. `import tritllm` registers; nothing here need be imported."""
