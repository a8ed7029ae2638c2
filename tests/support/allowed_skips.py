"""The reasons for which `make test` may skip a test, and what must be true of the machine."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path

from support.browser import chromium


@functools.cache
def cpu_flags() -> frozenset[str]:
    """What the kernel says that the processor can do; nothing where there is no /proc/cpuinfo."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    lines = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(lines[0].split()) if lines else frozenset()


def expected_isas() -> set[str]:
    """The codec's instruction sets that this processor must be found to have."""
    flags = cpu_flags()
    found = {"scalar"}
    if flags >= {"avx2", "fma", "f16c"}:
        found.add("avx2")
    if flags >= {f"avx512{part}" for part in ("f", "bw", "dq", "vl", "_vnni")}:
        found.add("avx512vnni")
        if "avx512vbmi" in flags:
            found.add("avx512")
    if "asimd" in flags:
        found.add("neon")
    return found


ALLOWED: dict[str, Callable[[], bool]] = {
    r"needs AVX-512": lambda: "avx512vnni" not in expected_isas(),
    r"needs a machine without NEON": lambda: "neon" in expected_isas(),
    r"no direct reads on this file system": lambda: True,
    r"temporary files live in memory": lambda: True,
    r"needs gguf": lambda: importlib.util.find_spec("gguf") is None,
    r"needs lm_eval": lambda: importlib.util.find_spec("lm_eval") is None,  # some 40 packages
    r"needs vllm": lambda: importlib.util.find_spec("vllm") is None,  # some 100 packages
    r"needs triton": lambda: (sys.platform, platform.machine()) != ("linux", "x86_64"),
    r"needs chromium": lambda: chromium() is None,
    r"needs ray": lambda: importlib.util.find_spec("ray") is None,
    r"needs to be root": lambda: not hasattr(os, "geteuid") or os.geteuid() != 0,
    r"(reads /proc|control groups are Linux's)": lambda: sys.platform != "linux",
    r"(no RLIMIT_FSIZE|needs fork and SIGKILL|no SIGINT to a child)": lambda: (
        sys.platform == "win32"
    ),
}


def is_allowed(reason: str) -> bool:
    """Whether a test may be skipped here for this reason."""
    return any(re.fullmatch(known, reason) and holds() for known, holds in ALLOWED.items())
