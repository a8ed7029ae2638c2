"""These tests need torch and transformers."""

import pytest
from support.torch_fixtures import (  # noqa: F401
    native,
    speaking,
    threads_kept,
    tiny,
    torch_only,
)

from tritllm.step import native_step


@pytest.fixture
def steps(monkeypatch):
    """The new tokens of each native step, as they are taken."""
    taken = []
    real = native_step.llama_step

    def counted(threads, blocks, step, scratch):
        taken.append(step.new_tokens)
        real(threads, blocks, step, scratch)

    monkeypatch.setattr(native_step, "llama_step", counted)
    return taken
