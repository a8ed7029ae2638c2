"""What of tritllm works on this machine, and why what does not, does not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from tritllm.codec import engine
from tritllm.errors import TritError, first_line
from tritllm.version import __version__

OPTIONAL = {
    "torch": "the demo, and measuring quality",
    "transformers": "the demo, and loading what is written",
    "matplotlib": "the demo's plot",
}


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis. ok is False where something a user may want is missing."""

    subject: str
    state: str
    ok: bool = True


def doctor() -> list[Finding]:
    """Look at the machine, what computes on it, and the optional packages."""
    memory = psutil.virtual_memory()
    findings = [
        Finding("tritllm", __version__),
        Finding("python", f"{platform.python_version()} at {sys.executable}"),
        Finding(
            "machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
        ),
        Finding("memory", f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB available"),
        _finding("codec", engine.describe, engine.is_native),
        _kernels(),
    ]
    for package in ("numpy", "huggingface_hub"):
        findings.append(Finding(package, importlib.metadata.version(package)))
    for package, purpose in OPTIONAL.items():
        if importlib.util.find_spec(package):
            findings.append(Finding(package, importlib.metadata.version(package)))
        else:
            missing = f"not installed; needed for {purpose}: pip install 'tritllm[demo]'"
            findings.append(Finding(package, missing, ok=False))
    return findings


def _kernels() -> Finding:
    """What would compute packed layers on the CPU."""
    why = "which is not installed: pip install 'tritllm[transformers]'"
    if importlib.util.find_spec("torch"):
        try:
            from tritllm.ops import cpu_kernels
        except (ImportError, OSError) as error:  # OSError: a library of torch's does not load
            why = f"which cannot be imported: {first_line(error)}"
        else:
            return _finding("kernels", cpu_kernels.describe, cpu_kernels.as_wanted)
    return Finding("kernels", f"none: packed layers need torch, {why}", ok=False)


def _finding(subject: str, describe: Callable[[], str], ok: Callable[[], bool]) -> Finding:
    """A finding; an environment variable that asks for what cannot be is one, too."""
    try:
        return Finding(subject, describe(), ok())
    except TritError as error:
        return Finding(subject, str(error), ok=False)
