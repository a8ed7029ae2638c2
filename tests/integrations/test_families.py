"""Every family that is known by name goes the whole way, and its row in the docs is what it did."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.family_models import ALL_MODELS, MODELS, MORE_MODELS
from support.family_run import coverage, percent, run_family

from tritllm.integrations.transformers.empty_model import checkpoint_tensors
from tritllm.quantizer.families import FAMILIES

DOCS = Path(__file__).parents[2] / "docs" / "families.md"
LEAST = 0.95

# Model types of a part of a model, whose names are those of the whole.
PARTS = {
    "qwen2_vl_text": "qwen2_vl", "qwen2_5_vl_text": "qwen2_5_vl", "qwen3_vl_text": "qwen3_vl",
    "qwen3_5_text": "qwen3_5", "qwen3_5_moe_text": "qwen3_5_moe", "llama4_text": "llama4",
    "clip_text_model": "clip", "clip_vision_model": "clip", "siglip_text_model": "siglip",
    "siglip_vision_model": "siglip", "siglip2_text_model": "siglip2",
    "siglip2_vision_model": "siglip2", "gemma4_text": "gemma4", "aria_text": "aria",
    "gemma3n": "gemma3n_text",
}  # fmt: skip


def written_row(name: str) -> str:
    (row,) = re.findall(rf"^\| `{re.escape(name)}` .*$", DOCS.read_text(), re.MULTILINE)
    return row


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_way(tmp_path, torch_only, name):
    row = run_family(name, tmp_path)
    assert row.coverage > LEAST
    assert row.with_towers is None or row.with_towers > LEAST
    assert row.markdown() == written_row(name)  # else: python scripts/make_families_table.py


@pytest.mark.parametrize("name", MORE_MODELS)
def test_names_and_coverage_of_those_that_only_the_script_runs(name):
    typical = MORE_MODELS[name].typical()
    tensors = checkpoint_tensors(typical, "bfloat16")
    share = coverage(tensors, typical)
    assert share > LEAST
    start = f"| `{name}` | {MORE_MODELS[name].known_as} | {percent(share)} |"
    assert written_row(name).startswith(start)
    if globs := [tower.glob for tower in FAMILIES[name].towers]:
        with_towers = coverage(tensors, typical, globs)
        assert with_towers > LEAST
        assert written_row(name).endswith(f", then {percent(with_towers)} |")


def test_no_family_is_known_that_did_not():
    assert FAMILIES.keys() == ALL_MODELS.keys() | PARTS.keys()
    for part, whole in PARTS.items():
        assert FAMILIES[part].linear == FAMILIES[whole].linear
        assert not FAMILIES[part].towers
