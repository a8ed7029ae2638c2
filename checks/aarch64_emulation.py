"""A wheel for aarch64 tried on another machine: Debian's Python for arm64 under qemu-user.

Python, its libraries, NumPy and ml_dtypes for aarch64 are only unpacked, into a folder of their
own: nothing of the machine is changed. Needs apt-get, dpkg and qemu-aarch64.
"""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

NEEDED = ("apt-get", "dpkg", "qemu-aarch64")
REQUIREMENTS = ("numpy", "ml_dtypes", "threadpoolctl")
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_17_aarch64", "manylinux_2_28_aarch64")

# Encoded and multiplied by the library, and held against the definitions in NumPy.
TRY = """
import platform
import numpy as np
from tritllm import codec, native, products
random = np.random.default_rng(0)
weights = random.standard_normal((48, 320)).astype(np.float32)
x = random.standard_normal((5, 320)).astype(np.float32)
packed = codec.encode(weights, depth=3)
prepared = products.prepare(packed)
decoded = packed.decode()
y = products.linear(prepared, x, arithmetic=products.EXACT)
assert np.allclose(y, x @ decoded.T, rtol=1e-5, atol=1e-4)
fast = products.linear(prepared, x)
apart = np.abs(fast - y).max() / np.abs(y).max()
assert apart < 0.02, apart
print(platform.machine(), "Python", platform.python_version(), "codec", native.isa() + ",",
      "products", native.isa("products") + ",", f"int8 within {apart:.1e} of exact")
"""


def missing() -> list[str]:
    """The programs that this needs and the machine lacks."""
    return [name for name in NEEDED if not shutil.which(name)]


def try_wheel(wheel: Path, work: Path, run: Callable[..., str]) -> str:
    """What an emulated Python says of the wheel after it has used it.

    run: runs a command and returns its output, or raises.
    """
    root = _system(work / "aarch64-system", run)
    found = [p for p in sorted((root / "usr/bin").glob("python3.*")) if p.name[8:].isdigit()]
    python = found[-1]
    site = work / "aarch64-site"
    shutil.rmtree(site, ignore_errors=True)
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    version = python.name.removeprefix("python")
    foreign = [*platforms, "--python-version", version, "--only-binary", ":all:", "--no-deps"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    run([*pip, *foreign, "--target", site, *REQUIREMENTS])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    settings = {"PYTHONPATH": str(site), "TRITLLM_REQUIRE_NATIVE": "1"}
    return run(["qemu-aarch64", "-L", root, python, "-c", TRY], settings, site).strip()


def _system(folder: Path, run: Callable[..., str]) -> Path:
    """Debian's packages of Python for arm64, unpacked; made when first asked for."""
    root = folder / "root"
    if root.exists():
        return root
    partial = folder / "root.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "1",
        "Dir::State": str(folder),
        "Dir::State::lists": str(folder / "lists"),
        "Dir::State::status": os.devnull,
        "Dir::Cache": str(folder / "cache"),
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    run(["apt-get", *options, "update"])
    run(["apt-get", *options, "install", "--download-only", "--yes", "--no-install-recommends",
         "python3", "libstdc++6"])  # fmt: skip
    for package in sorted((folder / "cache/archives").glob("*.deb")):
        run(["dpkg", "-x", package, partial])
    return partial.rename(root)
