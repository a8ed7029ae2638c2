"""tritllm serve: the real client against the real server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tritllm.errors import TritError
from tritllm.integrations import optional
from tritllm.integrations.generation import generate
from tritllm.integrations.serving import serve

PROMPT = "Hello"


@pytest.fixture(scope="module")
def server(speaking, tmp_path_factory):
    """Address of a server on the speaking model; its cache folder does not exist beforehand."""
    for package in ("openai", "fastapi", "uvicorn"):
        pytest.importorskip(package)
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("serve")
    code = f"from tritllm.integrations.serving import serve; serve({str(speaking)!r}, port={port})"
    environment = os.environ | {
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "TRITLLM_LINEAR": "torch",
        "OMP_NUM_THREADS": "1",
    }
    with open(folder / "log", "w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=log, stderr=log
        )
        try:
            _wait_for(f"http://localhost:{port}/health", process, log)
            yield f"http://localhost:{port}/v1"
        finally:
            process.terminate()
            process.wait(30)


def _wait_for(url: str, process: subprocess.Popen[bytes], log) -> None:
    for _ in range(600):
        assert process.poll() is None, (log.seek(0), log.read())
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise TimeoutError(url)


@pytest.fixture
def client(server):
    import openai

    with openai.OpenAI(base_url=server, api_key="none", timeout=60) as client:
        yield client


def test_chat_and_streamed_chat(client, speaking, torch_only):
    expected = generate(speaking, PROMPT, max_new_tokens=10, chat=True).text
    messages = [{"role": "user", "content": PROMPT}]
    how = {"model": str(speaking), "messages": messages, "max_tokens": 10, "temperature": 0}
    answer = client.chat.completions.create(**how)
    assert answer.choices[0].message.content == expected
    assert answer.usage.completion_tokens == 10
    chunks = list(client.chat.completions.create(**how, stream=True))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == expected
    assert sum(map(bool, pieces)) > 1


def test_completion_and_streamed_completion(client, speaking, torch_only):
    expected = generate(speaking, PROMPT, max_new_tokens=10).text
    how = {"model": str(speaking), "prompt": PROMPT, "max_tokens": 10, "temperature": 0}
    assert client.completions.create(**how).choices[0].text == expected
    chunks = client.completions.create(**how, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == expected


def test_listing_models_does_not_fail(client):
    assert list(client.models.list()) == []  # transformers lists what the Hub's cache holds


def test_a_missing_package_and_a_folder_that_is_none(monkeypatch, tmp_path):
    found = optional.importlib.util.find_spec
    monkeypatch.setattr(
        optional.importlib.util,
        "find_spec",
        lambda name: None if name == "fastapi" else found(name),
    )
    with pytest.raises(TritError, match=r"serve needs fastapi: pip install 'tritllm\[serve\]'"):
        serve(tmp_path)
