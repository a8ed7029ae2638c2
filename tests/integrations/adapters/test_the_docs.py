"""The example of docs/adapters.md, as it stands but for fewer steps."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs/adapters.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)


@pytest.mark.parametrize("code", BLOCKS, ids=["example"])
def test_the_example_learns(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "STEPS = 100\n" in code
    script = tmp_path / "example.py"
    script.write_text(code.replace("STEPS = 100\n", "STEPS = 4\n"))
    runpy.run_path(str(script))
    before, after = re.findall(r"held out, (?:before|after): (\d+\.\d+)", capsys.readouterr().out)
    assert float(after) < float(before) - 0.1
    assert (tmp_path / "adapter-out/adapter/adapter_model.safetensors").stat().st_size > 10000
