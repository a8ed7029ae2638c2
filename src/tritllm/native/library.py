"""Finds, loads and checks the shared library."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

from tritllm.native.signatures import INTERFACE, SIGNATURES
from tritllm.native.structures import FACTS, OK

_OTHER_VERSION = "it was built for another version of this package; install tritllm again"


def _path() -> Path:
    named = os.environ.get("TRITLLM_LIBRARY")
    if named:
        return Path(named)
    name = {"win32": "tritllm.dll", "darwin": "libtritllm.dylib"}.get(sys.platform, "libtritllm.so")
    return Path(__file__).parent / name


@cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    path = _path()
    if not path.exists():
        remedy = "install tritllm again where there is a C++ compiler"
        if os.environ.get("TRITLLM_LIBRARY"):
            remedy = "TRITLLM_LIBRARY names it"
        return None, f"{path} does not exist; {remedy}"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"{path}: {error}"
    difference = _difference(library)
    return (None, f"{path}: {difference}; {_OTHER_VERSION}") if difference else (library, None)


def _difference(library: ctypes.CDLL) -> str | None:
    """Declares the functions' types; where the library is not what they say, how it differs."""
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(library, name, None)
        if function is None:
            return f"it has no function {name}"
        function.restype, function.argtypes = result, arguments
    for name, expected in FACTS.items():
        found = library.tritllm_interface(name.encode())
        if found != expected:
            return f"{name} is {found} there and {expected} here"
    found = library.tritllm_interface_hash().decode()
    return None if found == INTERFACE else f"its interface is {found}, not {INTERFACE}"


def available() -> bool:
    """Whether the library is loaded."""
    return _load()[0] is not None


def load_error() -> str | None:
    """Why the library is not loaded, in a line; None where it is."""
    return _load()[1]


def library() -> ctypes.CDLL:
    """The loaded library. Raises RuntimeError where there is none."""
    loaded, error = _load()
    if loaded is None:
        raise RuntimeError(f"the native library is not available: {error}")
    return loaded


def check(status: int) -> None:
    """Raises RuntimeError for a status that the callers' own checks should have made impossible."""
    if status != OK:
        raise RuntimeError(f"the native library returned status {status}")
