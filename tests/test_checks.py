"""A core that does not build, a missing library and a skip that nobody allowed are errors.

They are in the project's own checks; a user gets the reference instead, and its one warning.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.allowed_skips import cpu_flags, expected_isas
from support.native_library import needs_library

from tritllm import native

ROOT = Path(__file__).parents[1]
MISSING = {"TRITLLM_LIBRARY": "nowhere/libtritllm.so"}


def python(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {"TRITLLM_REQUIRE_NATIVE": "", **environment}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=ROOT,
        check=False,
    )


@pytest.fixture
def own_tests(tmp_path):
    """run(*codes, ...): test files beside the project's conftest, in a pytest of their own."""

    def run(*codes: str, **environment: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "support").mkdir()
        shutil.copy(ROOT / "tests/conftest.py", tmp_path)
        for name in ("allowed_skips.py", "browser.py", "fork_server.py", "forked_programs.py"):
            shutil.copy(ROOT / "tests/support" / name, tmp_path / "support")
        (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
        for number, code in enumerate(codes):
            (tmp_path / f"test_{number}.py").write_text(f"import pytest\nimport warnings\n{code}")
        (tmp_path / "test_another.py").write_text("def test(): pass\n")
        return python("-m", "pytest", "-p", "no:cacheprovider", tmp_path, **environment)

    return run


SKIPS = {
    "by a mark": "@pytest.mark.skip(reason='by a mark')\ndef test(): pass",
    "by a call": "def test(): pytest.skip('by a call')",
    "by a fixture": "@pytest.fixture\ndef f(): pytest.skip('by a fixture')\ndef test(f): pass",
    "as a file": "pytest.skip('as a file', allow_module_level=True)",
    "could not import 'no_such_module'": "pytest.importorskip('no_such_module')\ndef test(): pass",
}


@needs_library
def test_a_skip_that_is_not_allowed_fails_a_strict_run(own_tests):
    done = own_tests(*SKIPS.values(), TRITLLM_REQUIRE_NATIVE="1")
    for reason in SKIPS:
        told = [line for line in done.stdout.splitlines() if f"skipped 1: {reason}" in line]
        assert len(told) == 1, (reason, done.stdout)
        assert told[0].endswith("(NOT in tests/support/allowed_skips.py)")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED


@needs_library
def test_an_allowed_skip_and_an_expected_failure_fail_no_strict_run(own_tests):
    code = """
def test_skipped(): pytest.skip('no direct reads on this file system')
@pytest.mark.xfail(reason='known')
def test_known(): assert False
"""
    done = own_tests(code, TRITLLM_REQUIRE_NATIVE="1")
    assert "skipped 1: no direct reads on this file system (allowed)" in done.stdout
    assert done.returncode == 0, done.stdout


def test_a_run_that_is_not_strict_only_says_its_skips(own_tests):
    done = own_tests(SKIPS["by a mark"])
    assert "skipped 1: by a mark" in done.stdout
    assert done.returncode == 0


def test_a_strict_run_without_the_library_does_not_begin(own_tests):
    done = own_tests("def test(): pass", TRITLLM_REQUIRE_NATIVE="1", **MISSING)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "TRITLLM_REQUIRE_NATIVE is set, but nowhere/libtritllm.so does not exist" in done.stderr


def test_the_references_warning_is_no_failure_without_the_library(own_tests):
    code = "def test(): warnings.warn('tritllm runs its NumPy reference: why', RuntimeWarning)"
    assert own_tests(code, **MISSING).returncode == 0


@needs_library
@pytest.mark.skipif(not cpu_flags(), reason="reads /proc")
def test_every_instruction_set_of_the_processor_is_found():
    assert expected_isas() <= set(native.isas())


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """The project with a header of its native core that does not compile."""
    folder = tmp_path_factory.mktemp("broken")
    for name in ("native", "src"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "model")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    header = folder / "native/include/tritllm.h"  # of every file, so that all fail at once
    header.write_text("#error broken\n" + header.read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def wheel_of(folder: Path, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir")
    return python("-m", "pip", "wheel", *options, out, folder, **environment)


def test_a_core_that_does_not_build_fails_where_it_is_required(broken, tmp_path):
    done = wheel_of(broken, tmp_path, TRITLLM_REQUIRE_NATIVE="1")
    assert done.returncode != 0
    assert "tritllm.h" in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["does not compile", "no compiler"])
def test_a_user_gets_the_reference_instead(broken, tmp_path, how):
    environment = {"CXX": "/bin/false"} if how == "no compiler" else {}
    done = wheel_of(broken, tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"tritllm/py.typed", "tritllm/format/tritllm.schema.json"} <= set(names)
    assert not [name for name in names if name.endswith((".so", ".dylib", ".dll", ".cpp"))]


def test_the_reference_says_once_that_it_runs():
    code = """
import warnings
import numpy as np
from tritllm.codec import encode
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(2):
        encode(np.eye(16, dtype=np.float32), depth=2)
print([w.category.__name__ for w in seen], str(seen[0].message))
"""
    said = python("-c", code, **MISSING)
    assert said.stdout.startswith("['RuntimeWarning'] tritllm runs its NumPy reference"), said
    doctor = python("-m", "tritllm", "doctor", **MISSING)
    assert doctor.returncode == 0
    assert "nowhere/libtritllm.so does not exist" in doctor.stdout
