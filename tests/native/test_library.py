"""Loading: what is compared with the library, and what is said where it is missing or another."""

import os
import subprocess
import sys

import pytest
from support.native_library import needs_library

from tritllm.native import library
from tritllm.native.signatures import SIGNATURES
from tritllm.native.structures import FACTS


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def test_a_missing_library_is_reported() -> None:
    code = "from tritllm.native import *; print(available(), isas(), load_error())"
    out = python(code, TRITLLM_LIBRARY="nowhere/libtritllm.so")
    assert out.startswith("False [] ")
    assert "libtritllm.so does not exist" in out


def test_the_loaders_own_words_are_kept(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("library") / "libtritllm.so"
    path.write_text("not a library")
    code = (
        "from tritllm import native; print(native.load_error())\n"
        "try: native.isa()\n"
        "except RuntimeError as error: print(error)"
    )
    lines = python(code, TRITLLM_LIBRARY=str(path)).splitlines()
    assert len(lines) == 2
    assert len(lines[0]) > len(f"{path}: {path}")  # ctypes' message, whatever the platform's words
    assert lines[1] == f"the native library is not available: {lines[0]}"


@needs_library
@pytest.mark.parametrize("name", FACTS)
def test_a_structure_or_constant_that_differs_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FACTS, name, FACTS[name] + 8)
    loaded, error = library._load.__wrapped__()
    assert loaded is None
    assert f"{name} is {FACTS[name] - 8} there and {FACTS[name]} here; it was built for" in error


@needs_library
def test_a_library_without_a_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that is older than this package."""
    monkeypatch.setitem(SIGNATURES, "tritllm_of_next_year", (None, ()))
    loaded, error = library._load.__wrapped__()
    assert loaded is None
    assert error.endswith(
        "it has no function tritllm_of_next_year; it was built for another version of this "
        "package; install tritllm again"
    )


@needs_library
def test_another_interface_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "INTERFACE", "0123456789abcdef")
    loaded, error = library._load.__wrapped__()
    assert loaded is None
    assert "its interface is" in error
    assert "not 0123456789abcdef; it was built for another version" in error


@needs_library
def test_a_name_that_the_library_does_not_know() -> None:
    assert library.library().tritllm_interface(b"tritllm_matrices") == -1
