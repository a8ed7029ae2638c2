"""Programs in processes forked from one that has imported torch already, and what it needs.

huggingface_hub, transformers and tritllm are not imported ahead: each program imports them anew,
and the environment that they read then is its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Program = Callable[..., "subprocess.CompletedProcess[str]"]

SERVER = """
import json, os, signal, sys, traceback, warnings

import jinja2.sandbox, numpy, regex, safetensors.torch, torch._dynamo, torch.distributed, tqdm.auto

assert not {"huggingface_hub", "transformers", "tritllm"} & set(sys.modules)
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        signal.alarm(200)  # ends a program that hangs
        for number, path in enumerate([os.devnull, asked["out"], asked["err"]]):
            os.dup2(os.open(path, os.O_RDWR), number)
        os.chdir(asked["folder"])
        os.environ.update(asked["environment"])
        sys.argv = ["-c", *asked["arguments"]]
        if asked["strict"]:
            warnings.simplefilter("error", RuntimeWarning)
        code = 0
        try:
            exec(asked["code"], {"__name__": "__main__"})
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)  # at once: to take all the modules down takes seconds
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def forked_program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """forked_program(code, *arguments, folder=".", strict=False, **environment): its result.

    folder: where it runs. strict: a RuntimeWarning is an error in it.
    """
    place = tmp_path_factory.mktemp("programs")
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # One thread each: a process that has more cannot be forked safely.
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert server.stdin
    assert server.stdout

    def run(
        code: str,
        *arguments: str,
        folder: Path | str = ".",
        strict: bool = False,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        out, err = place / "out", place / "err"
        for path in (out, err):
            path.write_text("")
        asked = {
            "code": textwrap.dedent(code),
            "arguments": arguments,
            "folder": str(folder),
            "strict": strict,
            "out": str(out),
            "err": str(err),
            "environment": environment,
        }
        print(json.dumps(asked), file=server.stdin, flush=True)
        returned = int(server.stdout.readline())
        return subprocess.CompletedProcess(code, returned, out.read_text(), err.read_text())

    yield run
    server.stdin.close()
    server.wait(60)
    server.stdout.close()
