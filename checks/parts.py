"""What the checks of this folder share: commands that are run, and parts that are told one by one.

A check is a function that returns what it found, in a line, or raises `CheckError`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).parents[1]


class CheckError(Exception):
    """A check that failed: what failed, in a line."""


def run(
    command: Iterable[str | Path],
    environment: Mapping[str, str] = MappingProxyType({}),
    cwd: Path = ROOT,
) -> str:
    """The output of a command, which is printed where the command fails.

    environment: variables of its environment, beside this process's.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        env={**os.environ, **environment},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        print(done.stdout)
        raise CheckError(f"exit code {done.returncode} of {shlex.join(words[:6])} ...")
    return done.stdout


def add_parts(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Let the command line name parts: `part`, a list."""
    known = list(names)

    def part(name: str) -> str:
        if name not in known:
            raise argparse.ArgumentTypeError(f"no part {name}; there are {', '.join(known)}")
        return name

    parser.add_argument("part", nargs="*", type=part, help=f"{', '.join(known)}; default: all")


def run_parts(
    what: str, parts: Mapping[str, Callable[[], str | None]], named: Sequence[str]
) -> int:
    """Run the parts that were named, by default all, and tell each; 1 where one failed, else 0."""
    failed = False
    for name in named or parts:
        start = time.monotonic()
        try:
            said = parts[name]() or "passed"
        except CheckError as error:
            said, failed = f"FAILED: {error}", True
        print(f"{what} {name} ({time.monotonic() - start:.0f} s): {said}", flush=True)
    return int(failed)
