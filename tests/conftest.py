"""What every test needs: no network, no Hub cache of the user's, no colours.

With TRITLLM_REQUIRE_NATIVE=1 (`make test` sets it) the native library must be there, and every skip
must be allowed by tests/support/allowed_skips.py.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import hypothesis
import pytest
from support.allowed_skips import is_allowed
from support.forked_programs import forked_program  # noqa: F401

from tritllm import native

os.environ |= {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "NO_COLOR": "1",
    "COLUMNS": "200",
    "TRITON_INTERPRET": "1",  # read when triton is first imported, which torch does, too
}

hypothesis.settings.register_profile(
    "tritllm",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],  # of the machine, not of the code
)
hypothesis.settings.load_profile("tritllm")
STRICT = os.environ.get("TRITLLM_REQUIRE_NATIVE", "0") not in ("", "0")


def pytest_configure(config: pytest.Config) -> None:
    """Without the native library: an error where it is required, else its warning is no failure."""
    config.pluginmanager.register(_Skips())
    if native.available():
        return
    if STRICT:
        raise pytest.UsageError(f"TRITLLM_REQUIRE_NATIVE is set, but {native.load_error()}")
    config.addinivalue_line("filterwarnings", "ignore:tritllm runs its NumPy reference")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Begin every test, and the fixtures that it makes, with the same random numbers.

    What a test draws without a seed of its own is then the same in whatever order tests run.
    """
    random.seed(0)
    for name, seed in (("numpy.random", "seed"), ("torch", "manual_seed")):
        if name in sys.modules:
            getattr(sys.modules[name], seed)(0)


class _Skips:
    """Counts skips by reason, from the reports: with several processes they are all seen in one."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count what is skipped as a whole file."""
        if report.skipped:
            self._count(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count each test that is skipped; an expected failure is none."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self._count(report)

    def _count(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        self._counts[reason.removeprefix("Skipped: ")] += 1

    def pytest_terminal_summary(self, terminalreporter) -> None:
        """Say each reason to skip, and whether it may be one."""
        for reason, count in sorted(self._counts.items()):
            verdict = "allowed" if is_allowed(reason) else "NOT in tests/support/allowed_skips.py"
            terminalreporter.write_line(f"skipped {count}: {reason} ({verdict})")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """A skip that is not allowed fails the run."""
        if STRICT and exitstatus == pytest.ExitCode.OK and not all(map(is_allowed, self._counts)):
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
