"""`python -m tritllm` is the command line."""

from tritllm.cli.main import run

run()
