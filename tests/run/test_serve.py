"""tritllm serve: the real client against the real server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import openai
import pytest
import typer
import uvicorn
from huggingface_hub import constants
from starlette.applications import Starlette
from starlette.testclient import TestClient
from support.browser import browser, chromium
from typer.testing import CliRunner

from tritllm import extras
from tritllm.cli import serve as serve_command
from tritllm.errors import TritError
from tritllm.integrations.transformers import Draft
from tritllm.run.generate import generate
from tritllm.run.serve import serve
from tritllm.run.served_app import ServedApp

PROMPT = "Hello"
CHAT = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def server(speaking, tmp_path_factory):
    """Address of a server on the speaking model; its cache folder does not exist beforehand.

    It drafts, which must change no answer, streamed or not.
    """
    with socket.socket() as held:  # bound, and not listening: nobody else is given its port
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("localhost", 0))
        yield from _served(speaking, tmp_path_factory.mktemp("serve"), held.getsockname()[1])


def _served(speaking, folder, port):
    how = {"port": port, "draft": "planes=1"}
    code = f"from tritllm.run.serve import serve; serve({str(speaking)!r}, **{how})"
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
    for _ in range(3000):
        assert process.poll() is None, (log.seek(0), log.read())
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise TimeoutError(url)


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server, api_key="none", timeout=60) as client:
        yield client


def asking(model, **how):
    """Arguments of a request for the most likely text of a model."""
    return {"model": str(model), "temperature": 0, **how}


def test_chat(client, speaking, torch_only):
    expected = generate(speaking, PROMPT, max_new_tokens=10, chat=True)
    answer = client.chat.completions.create(**asking(speaking, messages=CHAT, max_tokens=10))
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == 10


def test_streamed_chat(client, speaking, torch_only):
    expected = generate(speaking, PROMPT, max_new_tokens=10, chat=True).text
    how = asking(speaking, messages=CHAT, max_tokens=10, stream=True)
    chunks = list(client.chat.completions.create(**how))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == expected
    assert sum(map(bool, pieces)) > 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"


def test_completion(client, speaking, torch_only):
    expected = generate(speaking, PROMPT, max_new_tokens=10)
    answer = client.completions.create(**asking(speaking, prompt=PROMPT, max_tokens=10))
    assert answer.choices[0].text == expected.text
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == expected.new_tokens


def test_streamed_completion(client, speaking, torch_only):
    expected = generate(speaking, PROMPT, max_new_tokens=10).text
    how = asking(speaking, prompt=PROMPT, max_tokens=10, stream=True)
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**how)]
    assert "".join(pieces) == expected
    assert sum(map(bool, pieces)) > 1


def test_response_and_streamed_response(client, speaking, torch_only):
    expected = generate(speaking, PROMPT, max_new_tokens=10, chat=True).text
    how = asking(speaking, input=PROMPT, max_output_tokens=10)
    assert client.responses.create(**how, stream=False).output_text == expected
    events = client.responses.create(**how, stream=True)
    pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(pieces) == expected
    assert sum(map(bool, pieces)) > 1


def test_the_served_folder_is_listed(client, speaking):
    assert [model.id for model in client.models.list()] == [str(speaking)]


@pytest.mark.skipif(chromium() is None, reason="needs chromium")
def test_the_page_chats_with_the_server(server, speaking, torch_only):
    expected = generate(speaking, PROMPT, chat=True, max_new_tokens=200).text
    with browser() as started:
        page = started.new_page()
        page.goto(server.removesuffix("/v1"))
        page.fill("#text", PROMPT)
        page.press("#text", "Enter")
        page.wait_for_selector(".assistant .said:text-matches('.')")
        page.click("#send")  # which is Stop while an answer comes
        page.wait_for_selector("#status:text('the first after')")
        said = page.locator(".assistant .said").text_content()
        assert said
        assert said.startswith(expected) or expected.startswith(said)


@pytest.mark.parametrize("sent", [None, "Bearer wrong", "Basic secret", "secret", "Bearer secret2"])
def test_a_wrong_key_is_refused(sent):
    with TestClient(ServedApp(Starlette(), "model", "secret")) as http:
        headers = {"Authorization": sent} if sent else {}
        answer = http.get("/v1/models", headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert http.get("/health").status_code == 404  # passed on, to an application without one


def test_the_right_key_is_let_through():
    with TestClient(ServedApp(Starlette(), "model", "secret")) as http:
        answer = http.get("/v1/models", headers={"Authorization": "Bearer secret"})
    assert [model["id"] for model in answer.json()["data"]] == ["model"]


def test_a_port_that_is_taken(speaking):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(TritError, match=f"cannot listen on 127.0.0.1 port {port}: "):
            serve(speaking, host="127.0.0.1", port=port)


def test_planes_head_and_dtype_reach_the_server(
    speaking, torch_only, threads_kept, monkeypatch, tmp_path
):
    """The command, up to where the server would wait for requests; also for a model loaded anew."""
    asked = asking(speaking, prompt=PROMPT, max_tokens=10)
    answers = []

    def answer(server: uvicorn.Server) -> None:
        with TestClient(server.config.app) as http:
            for _ in range(2):
                answers.append(http.post("/v1/completions", json=asked).json())
                http.post("/reset").raise_for_status()

    monkeypatch.setattr(uvicorn.Server, "run", answer)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    app = typer.Typer()
    app.command()(serve_command.command)
    options = ["--planes", "1", "--lm-head-depth", "2", "--dtype", "float32", "--threads", "1"]
    result = CliRunner().invoke(app, [str(speaking), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    how = {"planes": 1, "lm_head_depth": 2, "dtype": "float32"}
    expected = generate(speaking, PROMPT, max_new_tokens=10, **how).text
    assert [done["choices"][0]["text"] for done in answers] == [expected, expected]
    assert expected != generate(speaking, PROMPT, max_new_tokens=10).text


def test_drafts_reach_the_server(speaking, torch_only, threads_kept, monkeypatch, tmp_path):
    drafts = []

    def answer(server: uvicorn.Server) -> None:
        with TestClient(server.config.app) as http:
            asked = asking(speaking, prompt=PROMPT, max_tokens=10)
            http.post("/v1/completions", json=asked).raise_for_status()

    def noted(draft: Draft, *arguments) -> None:
        drafts.append(draft)
        real(draft, *arguments)

    real = Draft.add_round
    monkeypatch.setattr(Draft, "add_round", noted)
    monkeypatch.setattr(uvicorn.Server, "run", answer)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    serve(speaking, draft=str(speaking), dtype="float32")
    assert {draft.report.acceptance for draft in drafts} == {1.0}
    with pytest.raises(TritError, match="the model reads 2 planes, a draft takes 1"):
        serve(speaking, draft="planes=2")
    with pytest.raises(TritError, match="kv_cache 'int8' does not fit"):
        serve(speaking, kv_cache="int8")


def test_a_missing_package_and_a_folder_that_is_none(monkeypatch, tmp_path):
    found = extras.importlib.util.find_spec
    monkeypatch.setattr(
        extras.importlib.util,
        "find_spec",
        lambda name: None if name == "fastapi" else found(name),
    )
    with pytest.raises(TritError, match=r"serve needs fastapi: pip install 'tritllm\[serve\]'"):
        serve(tmp_path)
