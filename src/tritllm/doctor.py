"""What of tritllm works on this machine, and why what does not, does not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from dataclasses import dataclass

import psutil

import tritllm
from tritllm.codec import engine

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


def diagnose() -> list[Finding]:
    """Look at the machine, the codec's implementation and the optional packages."""
    memory = psutil.virtual_memory()
    findings = [
        Finding("tritllm", tritllm.__version__),
        Finding("python", f"{platform.python_version()} at {sys.executable}"),
        Finding(
            "machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
        ),
        Finding("memory", f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB available"),
        Finding("codec", engine.describe(), ok=engine.is_native()),
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
