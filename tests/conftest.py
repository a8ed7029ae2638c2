"""What every test needs: no network, no Hub cache of the user's, no colours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

os.environ |= {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "NO_COLOR": "1",
    "COLUMNS": "200",
}

hypothesis.settings.register_profile("tritllm", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tritllm")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """What a test of this process writes need not survive a power cut."""
    monkeypatch.setattr(os, "fsync", os.fstat)


@pytest.fixture
def command_line():
    """Run `tritllm ...` in a process of its own, to its end."""

    def run(
        *arguments: str | Path, expect: int = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "tritllm", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | environment,
            timeout=300,
            check=False,
        )
        assert done.returncode == expect, (arguments, done.stdout, done.stderr)
        return done

    return run
