"""Every family that is known by name goes the whole way, and its row in the docs is what it did."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.family_models import MODELS
from support.family_run import run_family

DOCS = Path(__file__).parents[2] / "docs" / "families.md"
LEAST = 0.95


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_way(tmp_path, torch_only, name):
    row = run_family(name, tmp_path)
    assert row.coverage > LEAST
    assert row.with_towers is None or row.with_towers > LEAST
    (written,) = re.findall(rf"^\| `{re.escape(name)}` .*$", DOCS.read_text(), re.MULTILINE)
    assert row.markdown() == written  # else: python scripts/make_families_table.py
