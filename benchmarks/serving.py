"""Serving a packed folder beside its dequantized folder: tokens a second and latencies.

    python benchmarks/serving.py PACKED MODEL [--server transformers vllm] [--clients 1 8 32]

For each server both folders are served at once, each by a process of its own, and asked in turns
through the OpenAI completions endpoint, so that each figure has its counterpart of the same minute.
`transformers` is `tritllm serve` for the packed folder and `transformers serve`, which it wraps,
for the other; `vllm` is `vllm serve` for both. Every client sends its requests one after the other
and streams the answer. Tokens a second are of the median round. "first" is the median time to the
first token, "token" between two, "request" of the whole answer, "95 %" what one in twenty exceeds.

The servers must be installed where this runs; the folders need a tokenizer. vLLM on a CPU takes
the settings that `--vllm-options` gives (say "--max-model-len 256 --dtype bfloat16").
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import openai

START_SECONDS = 600
PROMPT = "The weather in the north of the country will be"


@dataclass
class Answers:
    """What a number of clients measured; times in seconds. speeds: tokens a second, by round."""

    speeds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    failed: int = 0

    def add(self, other: Answers) -> None:
        """Take another round's measurements in."""
        self.speeds += other.speeds
        self.failed += other.failed
        self.first += other.first
        self.between += other.between
        self.whole += other.whole

    @property
    def speed(self) -> float:
        """Tokens a second of all clients together, in the median round."""
        return statistics.median(self.speeds) if self.speeds else float("nan")


def command_of(server: str, folder: str, packed: bool, port: int, options: list[str]) -> list[str]:
    if server == "vllm":
        return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", folder,
                "--port", str(port), *options]  # fmt: skip
    if packed:
        return [sys.executable, "-m", "tritllm", "serve", folder, "--port", str(port)]
    code = "from transformers.cli.transformers import main; main()"
    return [sys.executable, "-c", code, "serve", folder, "--port", str(port)]


@contextmanager
def serving(server: str, folder: str, packed: bool, options: list[str]) -> Iterator[str]:
    """Address of a server that answers; it is stopped at the end."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command_of(server, folder, packed, port, options),
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        try:
            until = time.monotonic() + START_SECONDS
            while not _answers(f"http://localhost:{port}/health"):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    sys.exit(f"{server} does not serve {folder}:\n{log.read()[-3000:]}")
                time.sleep(0.5)
            yield f"http://localhost:{port}/v1"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


async def ask(url: str, model: str, clients: int, requests: int, tokens: int) -> Answers:
    """Have so many clients send their requests at the same time."""
    answers, made = Answers(), 0
    async with openai.AsyncOpenAI(
        base_url=url, api_key="none", timeout=START_SECONDS, max_retries=0
    ) as client:

        async def one_client(number: int) -> None:
            nonlocal made
            for index in range(requests):
                began = last = time.perf_counter()
                try:
                    stream = await client.completions.create(
                        model=model,
                        prompt=f"{number} {index}: {PROMPT}",
                        max_tokens=tokens,
                        temperature=0,
                        stream=True,
                        stream_options={"include_usage": True},
                    )
                    got = counted = 0
                    async for chunk in stream:
                        counted = chunk.usage.completion_tokens if chunk.usage else counted
                        if not chunk.choices or not chunk.choices[0].text:
                            continue
                        now = time.perf_counter()
                        (answers.between if got else answers.first).append(now - last)
                        got, last = got + 1, now
                except openai.OpenAIError:
                    answers.failed += 1
                    continue
                made += counted or got
                answers.whole.append(last - began)

        began = time.perf_counter()
        await asyncio.gather(*(one_client(number) for number in range(clients)))
        answers.speeds.append(made / (time.perf_counter() - began))
    return answers


def row(clients: int, packed: Answers, plain: Answers) -> str:
    """A line of the table; times in milliseconds."""

    def median(values: list[float]) -> float:
        return 1000 * statistics.median(values) if values else float("nan")

    def late(values: list[float]) -> float:  # of a hundred requests the fifth slowest
        return 1000 * sorted(values)[int(0.95 * len(values))] if values else float("nan")

    cells = [str(clients), f"{packed.speed:.1f}", f"{plain.speed:.1f}",
             f"{packed.speed / plain.speed:.2f}"]  # fmt: skip
    for kind in ("first", "between", "whole"):
        cells.append(" / ".join(f"{median(getattr(a, kind)):.0f}" for a in (packed, plain)))
    cells.append(" / ".join(f"{late(a.whole):.0f}" for a in (packed, plain)))
    cells.append(f"{packed.failed} / {plain.failed}")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packed")
    parser.add_argument("model")
    parser.add_argument("--server", nargs="+", choices=("transformers", "vllm"))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=1, help="of each client in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="asked for in each request")
    parser.add_argument("--vllm-options", default="")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped, too
    packed, model = (str(Path(folder).resolve()) for folder in (given.packed, given.model))
    here = ["transformers", *(["vllm"] if importlib.util.find_spec("vllm") else [])]
    for server in given.server or here:
        print(f"{server}: packed / dequantized, times in ms\n")
        print("| clients | packed tokens/s | dequantized | ratio | first | token | request | "
              "95 % | failed |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
        with ExitStack() as stack:
            options = shlex.split(given.vllm_options)
            served = [
                (stack.enter_context(serving(server, folder, folder == packed, options)), folder)
                for folder in (packed, model)
            ]
            for url, folder in served:  # what is made at the first request is not measured
                asyncio.run(ask(url, folder, 1, 1, given.tokens))
            for clients in given.clients:
                totals = [Answers(), Answers()]
                for turn in range(given.rounds):
                    for which in (0, 1) if turn % 2 == 0 else (1, 0):
                        url, folder = served[which]
                        totals[which].add(
                            asyncio.run(ask(url, folder, clients, given.requests, given.tokens))
                        )
                print(row(clients, *totals), flush=True)
        print()


if __name__ == "__main__":
    main()
