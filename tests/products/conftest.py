"""The instruction sets that packed products can run on."""

from __future__ import annotations

import pytest

from tritllm import native


@pytest.fixture(params=native.isas("products") or ["none"], scope="session")
def isa(request: pytest.FixtureRequest) -> str:
    """Every instruction set that can run here."""
    return request.param
