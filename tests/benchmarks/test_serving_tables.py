"""docs/serving.md holds what its command prints."""

from __future__ import annotations

import pytest
from support.native_library import needs_library

pytest.importorskip("transformers")

from benchmarks import serving_tables

# Parameters as the models are published with, to the digits that are given there.
PARAMETERS = {
    "Llama-3.1-8B": 8_030_261_248,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-14B": 14_770_033_664,
    "Qwen2.5-32B": 32_763_876_352,
    "Qwen2.5-72B": 72_706_203_648,
}


@needs_library
def test_the_page_holds_the_tables(monkeypatch):
    monkeypatch.setenv("TRITLLM_ISA", "scalar")  # as the command does; here it must not stay
    found = serving_tables.facts()
    assert {name: model.parameters for name, model in found.items()} == PARAMETERS
    page = serving_tables.PAGE.read_text("utf-8")
    assert page == serving_tables.with_tables(page, serving_tables.tables(found)), (
        "run python benchmarks/serving_tables.py --write"
    )
