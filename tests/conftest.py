"""What every test needs: no network, no Hub cache of the user's, no colours.

With TRITLLM_REQUIRE_NATIVE=1 (`make test` sets it) the native library must be there, and every skip
must be allowed by tests/support/allowed_skips.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import hypothesis
import pytest
from support.allowed_skips import is_allowed

from tritllm import native

os.environ |= {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "NO_COLOR": "1",
    "COLUMNS": "200",
}

hypothesis.settings.register_profile("tritllm", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tritllm")
STRICT = os.environ.get("TRITLLM_REQUIRE_NATIVE", "0") not in ("", "0")
_skips: pytest.StashKey[Counter[str]] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """Without the native library: an error where it is required, else its warning is no failure."""
    config.stash[_skips] = Counter()
    if native.available():
        return
    if STRICT:
        raise pytest.UsageError(f"TRITLLM_REQUIRE_NATIVE is set, but {native.load_error()}")
    config.addinivalue_line("filterwarnings", "ignore:tritllm runs its NumPy reference")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    """Count what is skipped as a whole file."""
    report = yield
    if report.skipped:
        _count(collector.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Count each test that is skipped; an expected failure is none."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        _count(item.config, report)
    return report


def _count(config: pytest.Config, report: pytest.CollectReport | pytest.TestReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    config.stash[_skips][reason.removeprefix("Skipped: ")] += 1


def pytest_terminal_summary(terminalreporter) -> None:
    """Say each reason to skip, and whether it may be one."""
    for reason, count in sorted(terminalreporter.config.stash[_skips].items()):
        verdict = "allowed" if is_allowed(reason) else "NOT in tests/support/allowed_skips.py"
        terminalreporter.write_line(f"skipped {count}: {reason} ({verdict})")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A skip that is not allowed fails the run."""
    reasons = session.config.stash[_skips]
    if STRICT and exitstatus == pytest.ExitCode.OK and not all(map(is_allowed, reasons)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


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
