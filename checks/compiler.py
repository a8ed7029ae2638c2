"""Sees to a C++ compiler: the machine's own, or else zig's clang, from the package index.

    python checks/compiler.py [--arm]

Run with the Python of a virtual environment. Where the machine has no compiler, zig is installed in
that environment, with scripts `c++` and `ar` beside its Python that call it. With --arm it sees to
the compiler of the checks for ARM, too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from parts import ROOT


def install_zig() -> list[str]:
    """The command that runs zig, which is installed first where it is missing."""
    command = [sys.executable, "-m", "ziglang"]
    if subprocess.run([*command, "version"], capture_output=True, check=False).returncode:
        pip = [sys.executable, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", "ziglang"], check=True)
    return command


def compiler_for_arm() -> list[str]:
    """The command of a compiler for 64-bit ARM: the machine's, or zig, installed if missing."""
    found = shutil.which("aarch64-linux-gnu-g++")
    return [found] if found else [*install_zig(), "c++", "-target", "aarch64-linux-musl"]


def emulator_of_arm() -> str | None:
    """The path of the program that runs those of 64-bit ARM; None where that is not installed."""
    return shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


def write_scripts(folder: Path, python: str | Path, target: str = "") -> None:
    """Scripts `c++`, `ar` and `ranlib` that call zig.

    python: in whose environment zig is. target: the machine and libc that `c++` compiles for, in
    zig's words; by default this machine.
    """
    for name in ("c++", "ar", "ranlib"):
        options = f"-target {target} " if target and name == "c++" else ""
        script = folder / name
        # pip sets PYTHONPATH while it builds, which would hide zig's package.
        script.write_text(
            f'#!/bin/sh\nunset PYTHONPATH\nexec "{python}" -m ziglang {name} {options}"$@"\n',
            encoding="utf-8",
        )
        script.chmod(0o755)


def main() -> None:
    """Says which compiler there is, and makes one where there is none."""
    named = os.environ.get("CXX")
    found = named or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if found:
        print(f"C++ compiler: {found}")
    else:
        install_zig()
        scripts = Path(sys.executable).parent
        write_scripts(scripts, sys.executable)
        print(f"C++ compiler: zig's clang, as {scripts / 'c++'}")
    if "--arm" in sys.argv and emulator_of_arm():
        print(f"for ARM: {' '.join(compiler_for_arm())}")


if __name__ == "__main__":
    main()
