"""Command lines in processes forked from one that has imported torch and transformers already.

Each runs from the entry point to the exit of its process, as a user's does, but for the seconds
that the imports take. The native library is not loaded ahead, nor TRITLLM_ variables read. Nothing
may connect to the network: a command that tries exits with 99.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.fork_server import fork_server

Command = Callable[..., "subprocess.CompletedProcess[str]"]

AHEAD = """
import gc, socket

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
"""
CHILD = """
signal.signal(signal.SIGINT, signal.default_int_handler)
exec(asked["before"])
sys.argv = ["tritllm", *asked["arguments"]]
from tritllm.cli.entry import run

try:
    run()
except SystemExit as ended:
    os._exit(ended.code or 0)
"""


@pytest.fixture(scope="session")
def forked_command_line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    """forked_command_line(*arguments, expect=0, before="", **environment): one command's result.

    before: Python to run in the process ahead of the command.
    """
    with fork_server(tmp_path_factory.mktemp("forked"), AHEAD, CHILD, 120) as ask:

        def run(
            *arguments: str | Path, expect: int = 0, before: str = "", **environment: str
        ) -> subprocess.CompletedProcess[str]:
            done = ask(environment, arguments=list(map(str, arguments)), before=before)
            assert done.returncode == expect, done
            return done

        yield run
