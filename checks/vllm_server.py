"""`vllm serve` in a process of its own, and what is asked of it over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from parts import CheckError

START_SECONDS = 600
LENGTH = 192  # tokens of a request, prompt and answer


class Server:
    """`vllm serve FOLDER`, stopped when the block is left.

    The options are those of a small machine: memory and threads. None is about packed weights.

    programs: of the environment. work: for the log and vLLM's cache of compiled graphs.
    linear: TRITLLM_LINEAR.
    """

    def __init__(
        self,
        programs: Path,
        work: Path,
        folder: Path,
        *options: str,
        ranks: int = 1,
        linear: str = "int8",
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.work = folder, work
        self.log = work / f"serve-{self.port}.log"
        self.programs = programs
        self.command = [
            str(programs / "vllm"), "serve", str(folder), "--port", str(self.port),
            "--tensor-parallel-size", str(ranks), "--max-model-len", str(LENGTH),
            "--max-num-seqs", "32", "--kv-cache-memory-bytes", str(64 << 20), *options,
        ]  # fmt: skip
        self.environment = server_environment(programs, work, ranks) | {"TRITLLM_LINEAR": linear}
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        if not self.starts():
            raise CheckError(f"{self.folder} was not served; {self.log} says why")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def starts(self) -> bool:
        """Start the process and wait until it answers; False where it ends before."""
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        started = time.monotonic()
        while not self._answers():
            if self.wait(1) is not None:
                return False
            if time.monotonic() - started > START_SECONDS:
                self.stop()
                raise CheckError(f"{self.folder} was not served in {START_SECONDS} s: {self.log}")
        return True

    def wait(self, seconds: float) -> int | None:
        """The exit code, None while it runs."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """End the process and those it started."""
        assert self.process is not None
        for what in (signal.SIGINT, signal.SIGKILL):
            if self.wait(0) is None:
                os.killpg(self.process.pid, what)
                self.wait(30)

    def _answers(self) -> bool:
        try:
            status, _ = self._ask("GET", "/health")
        except OSError:
            return False
        return status == 200

    def _ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=300)
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def complete(self, prompt: Any, **options: Any) -> dict[str, Any]:
        """The choice that /v1/completions gives, greedily. prompt: text, or ids of tokens."""
        status, data = self._ask("POST", "/v1/completions", self._request(prompt, options))
        if status != 200:
            raise CheckError(f"/v1/completions: status {status}: {data[:200]!r}; {self.log}")
        choice: dict[str, Any] = json.loads(data)["choices"][0]
        return choice

    def stream(self, prompt: Any, **options: Any) -> Iterator[str]:
        """The pieces of text as they come."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=300)
        body = self._request(prompt, options) | {"stream": True}
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        for line in connection.getresponse():
            data = line.decode().removeprefix("data: ").strip()
            if data == "[DONE]":
                return
            if data:
                yield json.loads(data)["choices"][0]["text"]
        raise CheckError(f"a stream ended without [DONE]; {self.log}")

    def _request(self, prompt: Any, options: dict[str, Any]) -> dict[str, Any]:
        return {"model": str(self.folder), "prompt": prompt, "temperature": 0} | options

    def bench(self, requests: int, together: int) -> dict[str, Any]:
        """What `vllm bench serve` measures; raises CheckError where a request is lost."""
        result = self.work / f"bench-{self.port}.json"
        with (self.work / f"bench-{self.port}.log").open("wb") as log:
            done = subprocess.run(
                [
                    str(self.programs / "vllm"), "bench", "serve", "--backend", "openai",
                    "--host", "127.0.0.1", "--port", str(self.port), "--model", str(self.folder),
                    "--dataset-name", "random", "--random-input-len", "48",
                    "--random-output-len", "32", "--ignore-eos", "--num-prompts", str(requests),
                    "--max-concurrency", str(together), "--disable-tqdm", "--save-result",
                    "--result-dir", str(self.work), "--result-filename", result.name,
                ],
                env=self.environment, stdout=log, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
        if done.returncode:
            raise CheckError(f"vllm bench serve: exit code {done.returncode}; {log.name}")
        found: dict[str, Any] = json.loads(result.read_text("utf-8"))
        if found["completed"] != requests or found.get("failed", 0):
            raise CheckError(f"only {found['completed']} of {requests} requests came back")
        return found


def server_environment(programs: Path, work: Path, ranks: int) -> dict[str, str]:
    """For processes of vLLM on a small machine: no network, a core for each rank."""
    cores = sorted(os.sched_getaffinity(0))
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CACHE_ROOT": str(work / "cache"),
    }
    if ranks > 1:
        if len(cores) < ranks:
            raise CheckError(f"{ranks} ranks need {ranks} processors, and here are {len(cores)}")
        share = len(cores) // ranks
        parts = [cores[rank * share : (rank + 1) * share] for rank in range(ranks)]
        bind = "|".join(",".join(map(str, part)) for part in parts)
        environment["VLLM_CPU_OMP_THREADS_BIND"] = bind
    return environment
