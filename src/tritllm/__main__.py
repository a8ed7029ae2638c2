"""`python -m tritllm` is the command line."""

from tritllm.cli.entry import run

run()
