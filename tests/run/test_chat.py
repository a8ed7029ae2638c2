"""tritllm chat: a conversation, its cache and its commands."""

from __future__ import annotations

import functools
import io
import os
import shutil
import signal
import sys

import pytest
import torch
import typer
from support.speaking_model import TEMPLATE
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from typer.testing import CliRunner

import tritllm
from tritllm.cli import chat as chat_command
from tritllm.cli.chat import talk
from tritllm.errors import TritError
from tritllm.run.chat import _can_be_shortened
from tritllm.run.generate import generate

SAID = ("Hello", "and now?", "so be it")
HOW = {"max_new_tokens": 9, "temperature": 0, "dtype": "float32"}


@pytest.fixture(scope="module")
def talking(speaking, tmp_path_factory):
    """The speaking model with a template in which an answer stands as it was written."""
    folder = shutil.copytree(speaking, tmp_path_factory.mktemp("talking") / "model")
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("] {{", "]{{"))
    return folder


def in_template(*contents: str, system: str = "") -> str:
    """What that template makes of turns, user first, up to where an answer begins."""
    text = f"[system]{system}\n" if system else ""
    for turn, content in enumerate(contents):
        text += f"[{'assistant' if turn % 2 else 'user'}]{content}\n"
    return text + "[assistant]"


@pytest.mark.parametrize("draft", [None, "planes=1"])
def test_every_answer_is_that_of_a_fresh_start(talking, torch_only, draft):
    chat = tritllm.chat(talking, system="Be brief.", draft=draft, **HOW)
    turns: list[str] = []
    held = 0
    for said in SAID:
        turns.append(said)
        prompt = in_template(*turns, system="Be brief.")
        pieces: list[str] = []
        answer = chat.answer(said, on_text=pieces.append)
        assert "".join(pieces) == answer.text == generate(talking, prompt, **HOW).text
        assert (answer.kept_tokens, answer.prompt_tokens) == (held, len(prompt) - held)
        held = len(prompt) + answer.new_tokens - 1  # nothing came after the last one
        turns.append(answer.text)
    assert [m["content"] for m in chat.messages] == ["Be brief.", *turns]


def test_a_reset_begins_anew_and_a_seed_repeats(talking, torch_only):
    how = HOW | {"temperature": 1.5}
    chat = tritllm.chat(talking, seed=5, system="Be brief.", **how)
    first = [chat.answer(said).text for said in SAID[:2]]
    chat.reset()
    assert [m["role"] for m in chat.messages] == ["system"]
    again = chat.answer(SAID[0])
    assert (again.text, again.kept_tokens) == (first[0], 0)
    assert chat.answer(SAID[1]).text == first[1]
    assert tritllm.chat(talking, seed=6, **how).answer(SAID[0]).text != first[0]


def test_the_models_own_settings_choose_tokens(talking, torch_only, tmp_path):
    folder = shutil.copytree(talking, tmp_path / "own")
    plain = tritllm.chat(folder, max_new_tokens=9, seed=1).answer("Hello").text
    assert plain == tritllm.chat(folder, seed=2, **HOW).answer("Hello").text  # not sampled
    own = '{"do_sample": true, "temperature": 1.5, "top_p": 0.95, "eos_token_id": 256}'
    (folder / "generation_config.json").write_text(own)
    sampled = [tritllm.chat(folder, max_new_tokens=9, seed=s).answer("Hello").text for s in (1, 2)]
    assert sampled[0] != sampled[1]
    assert tritllm.chat(folder, **HOW).answer("Hello").text == plain


def test_a_template_that_writes_history_otherwise(speaking, torch_only):
    """It puts a space before an answer that was written without: only what is the same is kept."""
    chat = tritllm.chat(speaking, **HOW)
    first = chat.answer("Hello").text
    answer = chat.answer("go on")
    prompt = f"[user] Hello\n[assistant] {first}\n[user] go on\n[assistant]"
    assert answer.text == generate(speaking, prompt, **HOW).text
    assert answer.kept_tokens == len("[user] Hello\n[assistant]")


def test_which_caches_can_be_shortened():
    def cache_of(*layers):
        cache = DynamicCache()
        cache.layers = list(layers)
        for layer in layers:
            layer.update(torch.zeros(1, 1, 6, 4), torch.zeros(1, 1, 6, 4))
        return cache

    assert _can_be_shortened(cache_of(DynamicLayer(), DynamicSlidingWindowLayer(7)))
    assert not _can_be_shortened(cache_of(DynamicLayer(), DynamicSlidingWindowLayer(6)))
    assert not _can_be_shortened(object())


def test_stopping_keeps_what_was_said(talking, torch_only):
    chat = tritllm.chat(talking, max_new_tokens=100, temperature=0, dtype="float32")
    whole = generate(talking, in_template("Hello"), **HOW | {"max_new_tokens": 100}).text
    answer = chat.answer("Hello", on_text=lambda piece: chat.stop())
    assert answer.stopped
    assert 0 < answer.new_tokens < 100
    assert whole.startswith(answer.text)
    assert chat.messages[-1] == {"role": "assistant", "content": answer.text}
    follows = chat.answer("go on", on_text=lambda piece: chat.stop())
    assert follows.kept_tokens > len(in_template("Hello"))


def test_what_is_broken_off_is_taken_back(talking, torch_only):
    def break_off(piece: str) -> None:
        raise KeyboardInterrupt

    chat = tritllm.chat(talking, **HOW)
    first = chat.answer("Hello")
    before = list(chat.messages)
    with pytest.raises(KeyboardInterrupt):
        chat.answer("and now?", on_text=break_off)
    assert chat.messages == before
    answer = chat.answer("and now?")
    prompt = in_template("Hello", first.text, "and now?")
    assert answer.text == generate(talking, prompt, **HOW).text


def test_a_full_context(talking, torch_only):
    chat = tritllm.chat(talking, temperature=0)
    answer = chat.answer("a" * 220)
    assert answer.context_full == chat.context == 256 == answer.context_tokens
    before = list(chat.messages)
    with pytest.raises(TritError, match=r"fills the model's context of 256; begin a new one"):
        chat.answer("b")
    assert chat.messages == before
    chat.reset()
    assert chat.answer("c").context_full


def test_a_model_without_a_template_continues_text(talking, torch_only, tmp_path):
    folder = shutil.copytree(talking, tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    chat = tritllm.chat(folder, system="Of ships.", **HOW)
    assert not chat.has_template
    first = chat.answer("Hello")
    assert first.text == generate(folder, "Of ships.\nHello", **HOW).text
    second = chat.answer("More")
    assert second.text == generate(folder, f"Of ships.\nHello{first.text}\nMore", **HOW).text
    assert second.kept_tokens == len("Of ships.\nHello") + 8


def test_a_template_that_fails(talking, torch_only, tmp_path):
    folder = shutil.copytree(talking, tmp_path / "fails")
    refusing = "{{ raise_exception('no system role') }}" + TEMPLATE
    (folder / "chat_template.jinja").write_text(refusing)
    with pytest.raises(TritError, match="its chat template fails: no system role"):
        tritllm.chat(folder, **HOW).answer("Hello")


def test_lines_from_a_pipe(talking, torch_only, monkeypatch, capsys):
    lines = "Hello\n\n/help\n/nonsense\n/usr is a folder\n/reset\nHello\n/exit\nnever\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    talk(tritllm.chat(talking, **HOW), interactive=False)
    printed = capsys.readouterr()
    done = generate(talking, in_template("Hello"), **HOW)
    first = done.text
    prompt = in_template("Hello", first, "/usr is a folder")
    second = generate(talking, prompt, **HOW).text
    assert printed.out == f"{first}\n{chat_command.HELP}\n{second}\n{first}\n"
    assert "no command /nonsense" in printed.err
    assert "a new conversation" in printed.err
    assert printed.err.count(" kept); ") == 3
    assert f"; {done.prompt_tokens + done.new_tokens} of 256 tokens of context" in printed.err


def test_an_error_ends_a_pipe_and_no_terminal(talking, torch_only, monkeypatch, capsys):
    chat = tritllm.chat(talking, **HOW)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a" * 300 + "\nnever\n"))
    with pytest.raises(TritError, match="fills the model's context of 256"):
        talk(chat, interactive=False)
    typed = iter(["a" * 300, "Hello"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed, None) or _raise(EOFError))
    talk(chat, interactive=True)
    printed = capsys.readouterr()
    assert "error: the conversation of 3" in printed.err
    assert len(chat.messages) == 2


def _raise(error):
    raise error


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child")
def test_ctrl_c_stops_an_answer_and_takes_a_line_back(talking, torch_only, monkeypatch, capsys):
    """At the first piece of an answer, before it, twice, and at the prompt; Ctrl-D ends."""
    endless = {"eos_token_id": None}
    chat = tritllm.chat(talking, **HOW | {"max_new_tokens": 100})
    vars(chat._generator.model.generation_config).update(endless)
    interrupt = functools.partial(os.kill, os.getpid(), signal.SIGINT)
    when = {"first piece": 1, "before it": 0, "twice": 2}
    answer = chat.answer

    def interrupted(text, on_text):
        def hear(piece):
            on_text(piece)
            for _ in range(when[text]):
                interrupt()

        if not when[text]:
            interrupt()
        return answer(text, on_text=hear)

    monkeypatch.setattr(chat, "answer", interrupted)
    steps = iter([interrupt, *(functools.partial(str, text) for text in when)])

    def typed(prompt):
        step = next(steps, None)
        return _raise(EOFError) if step is None else step()

    monkeypatch.setattr("builtins.input", typed)
    before = signal.getsignal(signal.SIGINT)
    talk(chat, interactive=True)
    assert signal.getsignal(signal.SIGINT) == before
    assert [m["content"] for m in chat.messages[::2]] == ["first piece"]
    notes = capsys.readouterr().err
    assert notes.count("Ctrl-D ends") == 2
    assert notes.count("stopped; ") == 1
    assert notes.count("broken off; what you said is taken back") == 2


def test_the_command(talking, torch_only, threads_kept):
    options = ["--system", "Be brief.", "--max-new-tokens", "9", "--temperature", "0"]
    options += ["--dtype", "float32", "--threads", "1", "--seed", "1", "--draft", "planes=1"]
    app = typer.Typer()
    app.command()(chat_command.command)
    result = CliRunner().invoke(app, [str(talking), *options], input="Hello\n")
    assert result.exit_code == 0, result.output
    prompt = in_template("Hello", system="Be brief.")
    assert result.stdout == generate(talking, prompt, **HOW).text + "\n"
    assert "drafts by 1 of 2 planes" in result.stderr
