"""These tests need peft; what it warns of with transformers 5.23 is not ours."""

from __future__ import annotations

import pytest

# peft 0.21 asks transformers 5.23 for names that are deprecated there.
_IGNORED = (
    "ignore:`(is_)?gradient_checkpointing:FutureWarning",
    "ignore:fan_in_fan_out is set to False:UserWarning",  # GPT-2's own layers
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "adapters" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings(*_IGNORED))
