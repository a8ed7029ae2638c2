"""What tests of the native steps of models share."""

import pytest

from tritllm.integrations.transformers.native_step import prompts


@pytest.fixture
def exact(native):
    native("exact")


@pytest.fixture(autouse=True)
def prompts_stay(monkeypatch):
    """Prompts take transformers' own forward, as on a machine where that is the faster one."""
    monkeypatch.setattr(prompts, "pays", lambda: False)


@pytest.fixture
def prompts_pay(prompts_stay, monkeypatch):
    """Prompts take the native blocks."""
    monkeypatch.setattr(prompts, "pays", lambda: True)
