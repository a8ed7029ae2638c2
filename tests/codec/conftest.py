"""The instruction sets that the codec can run on."""

from __future__ import annotations

import pytest

from tritllm import native


@pytest.fixture(params=native.isas() or ["none"], scope="session")
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set that can run here."""
    return request.param
