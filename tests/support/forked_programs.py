"""Programs in processes forked from one that has imported torch already, and what it needs.

huggingface_hub, transformers and tritllm are not imported ahead: each program imports them anew,
and the environment that they read then is its own.
"""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.fork_server import fork_server

Program = Callable[..., "subprocess.CompletedProcess[str]"]

AHEAD = """
import traceback, warnings

import jinja2.sandbox, numpy, regex, safetensors.torch, torch._dynamo, torch.distributed, tqdm.auto

assert not {"huggingface_hub", "transformers", "tritllm"} & set(sys.modules)
"""
CHILD = """
os.chdir(asked["folder"])
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
os._exit(code)
"""


@contextmanager
def forked_programs(place: Path, more: str = "") -> Iterator[Program]:
    """Yields run(code, *arguments, folder=".", strict=False, **environment): a program's result.

    place: for what a program prints. more: Python that runs ahead as well. folder: where the
    program runs. strict: a RuntimeWarning is an error in it.
    """
    with fork_server(place, AHEAD + more, CHILD, 200) as ask:

        def run(
            code: str,
            *arguments: str,
            folder: Path | str = ".",
            strict: bool = False,
            **environment: str,
        ) -> subprocess.CompletedProcess[str]:
            return ask(
                environment,
                code=textwrap.dedent(code),
                arguments=arguments,
                folder=str(folder),
                strict=strict,
            )

        yield run


@pytest.fixture(scope="session")
def forked_program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """What `forked_programs` yields."""
    with forked_programs(tmp_path_factory.mktemp("programs")) as run:
        yield run
