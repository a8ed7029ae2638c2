"""A process that imports once what tests need, and is forked for each of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Ask = Callable[..., "subprocess.CompletedProcess[str]"]

_LOOP = """
import json, os, signal, sys
{ahead}
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        signal.alarm({seconds})  # ends a child that hangs
        for number, path in enumerate([os.devnull, asked["out"], asked["err"]]):
            os.dup2(os.open(path, os.O_RDWR), number)
        os.environ.update(asked["environment"])
{child}
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
os._exit(0)
"""


@contextmanager
def fork_server(folder: Path, ahead: str, child: str, seconds: int) -> Iterator[Ask]:
    """Yields ask(environment, **asked): what a child with these variables did.

    folder: for what a child prints. ahead: Python that runs once. child: Python that runs in each
    fork, with `asked`, and ends it, best by os._exit, as the server ends: to take all the modules
    down takes seconds.
    """
    server = subprocess.Popen(
        [
            sys.executable,
            "-c",
            _LOOP.format(ahead=ahead, child=textwrap.indent(child, " " * 8), seconds=seconds),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # One thread each: a process that has more cannot be forked safely.
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert server.stdin
    assert server.stdout
    out, err = folder / "out", folder / "err"

    def ask(environment: dict[str, str], **asked: object) -> subprocess.CompletedProcess[str]:
        for path in (out, err):
            path.write_text("")
        asked |= {"environment": environment, "out": str(out), "err": str(err)}
        print(json.dumps(asked), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess([], code, out.read_text(), err.read_text())

    yield ask
    server.stdin.close()
    server.wait(60)
    server.stdout.close()
