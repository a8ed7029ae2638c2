"""Optional packages: whether they are here, and what to type if not."""

from __future__ import annotations

import importlib.util

from tritllm.errors import TritError


def require(purpose: str, extra: str, *packages: str) -> None:
    """Raise TritError, with the command that installs it, for the first package that is missing."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise TritError(f"{purpose} needs {package}: pip install 'tritllm[{extra}]'")
