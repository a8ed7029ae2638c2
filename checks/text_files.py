"""What must hold of every text file: it parses, ends with one line end, no spaces end a line.

The same as the hooks of .pre-commit-config.yaml, for those who have not installed them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from parts import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = None

TEXT = {".c", ".cfg", ".cpp", ".h", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}
NAMES = {"CMakeLists.txt", "LICENSE", "Makefile", "run", ".clang-format", ".gitignore"}
AS_GIVEN = ("src/tritllm/demo_data/",)  # data: what made it decides how it looks


def tracked() -> Iterator[Path]:
    """The text files of the repository; without git, of the folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        left_out = {".venv", "build", "dist", "__pycache__"}
        paths = [path for path in ROOT.rglob("*") if not left_out & set(path.parts)]
    for path in sorted(paths):
        if path.is_file() and (path.suffix in TEXT or path.name in NAMES):
            yield path


def faults_of(name: str, text: str) -> Iterator[str]:
    """Every fault of one file, as a line."""
    suffix = Path(name).suffix
    try:
        if suffix == ".json":
            json.loads(text)
        elif suffix in (".yaml", ".yml") or Path(name).name == ".clang-format":
            yaml.safe_load(text)
        elif suffix == ".toml" and tomllib:
            tomllib.loads(text)
    except ValueError as error:
        yield f"{name}: {error}"
    except yaml.YAMLError as error:
        yield f"{name}: {str(error).splitlines()[0]}"
    if name.startswith(AS_GIVEN):
        return
    if text and (not text.endswith("\n") or text.endswith("\n\n")):
        yield f"{name}: does not end with one line end"
    for number, line in enumerate(text.splitlines(), 1):
        if line != line.rstrip():
            yield f"{name}:{number}: spaces at the end of the line"


def main() -> int:
    """Prints the faults; 1 where there are any."""
    faults = [
        fault
        for path in tracked()
        for fault in faults_of(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]
    print("\n".join(faults) or "text files: all in order")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
