"""What tests of the native steps of models share."""

import pytest

from tritllm.step import native_step


@pytest.fixture
def exact(native):
    native("exact")


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
