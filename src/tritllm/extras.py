"""Packages that only some of tritllm needs: whether they are here, and what to type if not.

The codec and the packed file need NumPy and ml_dtypes alone; everything else is an extra of the
distribution (`pip install 'tritllm[EXTRA]'`), imported where it is used.
"""

from __future__ import annotations

import importlib.util

from tritllm.errors import TritError


def require(purpose: str, extra: str, *packages: str) -> None:
    """Raise TritError, with the command that installs it, for the first package that is missing.

    Args:
        purpose: what needs the packages; the line begins with it.
        extra: the extra of tritllm that brings them.
        packages: names to import.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise TritError(f"{purpose} needs {package}: {how_to_install(extra)}")


def how_to_install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'tritllm[{extra}]'"
