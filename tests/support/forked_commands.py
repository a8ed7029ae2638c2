"""Command lines in processes forked from one that has imported torch and transformers already.

Each runs from the entry point to the exit of its process, as a user's does, but for the seconds
that the imports take. The native library is not loaded ahead, nor TRITLLM_ variables read. Nothing
may connect to the network: a command that tries exits with 99.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]

SERVER = """
import gc, json, os, signal, socket, sys

import torch, transformers.cli.serve
import tritllm.cli.main, tritllm.integrations.transformers.load_model

transformers.AutoModelForCausalLM, transformers.AutoTokenizer, transformers.LlamaForCausalLM
transformers.PreTrainedTokenizerFast  # names that transformers imports when they are first used
socket.socket.connect = lambda *arguments: os._exit(99)
look_up = socket.getaddrinfo
local = ("localhost", "nowhere.invalid")
socket.getaddrinfo = lambda host, *how, **more: (
    look_up(host, *how, **more) if host in local or host[0].isdigit() else os._exit(99)
)
gc.freeze()
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        signal.alarm(120)  # ends a command that hangs
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, path in enumerate([os.devnull, asked["out"], asked["err"]]):
            os.dup2(os.open(path, os.O_RDWR), number)
        os.environ.update(asked["environment"])
        exec(asked["before"])
        sys.argv = ["tritllm", *asked["arguments"]]
        from tritllm.cli.entry import run

        try:
            run()
        except SystemExit as ended:
            os._exit(ended.code or 0)  # at once: to take all the modules down takes seconds
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def forked_command_line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """forked_command_line(*arguments, expect=0, before="", **environment): one command's result.

    before: Python to run in the process ahead of the command.
    """
    folder = tmp_path_factory.mktemp("forked")
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # One thread each: a process that has more cannot be forked safely.
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )

    def run(
        *arguments: str | Path, expect: int = 0, before: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        out, err = folder / "out", folder / "err"
        out.write_text("")
        err.write_text("")
        asked = {
            "arguments": list(map(str, arguments)),
            "out": str(out),
            "err": str(err),
            "before": before,
            "environment": environment,
        }
        print(json.dumps(asked), file=_open(server.stdin), flush=True)
        code = int(_open(server.stdout).readline())
        done = subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())
        assert code == expect, done
        return done

    yield run
    _open(server.stdin).close()
    server.wait(60)
    _open(server.stdout).close()


def _open(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
