"""Sees to a C++ compiler: the machine's own, or else zig's clang, from the package index.

Run with the Python of a virtual environment. Where the machine has no compiler, zig is installed in
that environment, with scripts `c++` and `ar` beside its Python that call it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def install_zig() -> list[str]:
    """The command that runs zig, which is installed first where it is missing."""
    command = [sys.executable, "-m", "ziglang"]
    if subprocess.run([*command, "version"], capture_output=True, check=False).returncode:
        pip = [sys.executable, "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", "ziglang"], check=True)
    return command


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
        return
    install_zig()
    scripts = Path(sys.executable).parent
    write_scripts(scripts, sys.executable)
    print(f"C++ compiler: zig's clang, as {scripts / 'c++'}")


if __name__ == "__main__":
    main()
