"""What a person gets wrong, typed as he would: one line on standard error, never a traceback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tritllm.cli import entry

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, /dev/full")
pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    from support.speaking_model import speaking_model

    return speaking_model(tmp_path_factory.mktemp("one-line"))


def damage(kind: str, packed: Path, folder: Path) -> Path:
    """A copy of the packed folder, damaged."""
    shutil.copytree(packed, folder / kind)
    broken = folder / kind
    if kind == "noshard":
        (broken / "model.safetensors").unlink()
    elif kind == "truncated":
        os.truncate(broken / "model.safetensors", 5000)
    elif kind == "badconfig":
        (broken / "config.json").write_text("{")
    elif kind == "notokenizer":
        for path in broken.glob("tokenizer*"):
            path.unlink()
    elif kind == "file":
        shutil.rmtree(broken)
        broken.touch()
    return broken


def assert_one_line(done: subprocess.CompletedProcess[str], says: str = "") -> None:
    assert done.returncode == 1
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "unexpected" not in done.stderr
    assert says in done.stderr


@pytest.mark.parametrize("kind", ["noshard", "truncated", "badconfig", "notokenizer", "file"])
@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--prompt", "a", "--max-new-tokens", "1"],
        ["bench", "--new-tokens", "1", "--no-compare"],
        ["serve", "--port", "0"],
    ],
    ids=lambda command: command[0],
)
def test_a_damaged_folder(kind, command, packed, tmp_path, forked_command_line):
    if command[0] == "bench" and kind == "notokenizer":
        return  # it needs none
    folder = damage(kind, packed, tmp_path)
    assert_one_line(forked_command_line(command[0], folder, *command[1:], expect=1), kind)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompt", "a\udcff"], "the prompt is not text"),
        (["--prompt", "a", "--seed", "-1"], "--seed -1 is not 0.."),
        (["--prompt", "a", "--seed", str(2**64)], "is not 0.."),
        (["--prompt", "a", "--seed", "9" * 400], "(400 digits)"),
        (["--prompt", "a", "--threads", str(10**9)], "--threads 1000000000 is not 1..256"),
        (["--prompt", "a", "--planes", "4"], "holds 2 planes, --planes 4 is not 1..2"),
        (["--prompt", "a" * 256], "the prompt's 256 tokens fill the model's context of 256"),
    ],
)
def test_what_generate_cannot_do(packed, arguments, says, forked_command_line):
    assert_one_line(forked_command_line("generate", packed, *arguments, expect=1), says)


def test_a_full_context_is_said(packed, forked_command_line):
    done = forked_command_line("generate", packed, "--prompt", "a" * 250, "--max-new-tokens", "9")
    assert "stopped where the model's context of 256 tokens is full" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_and_a_closed_pipe(packed):
    for command in ("info", "verify"):
        line = [sys.executable, "-m", "tritllm", command, str(packed)]
        with open("/dev/full", "w") as full:
            done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert_one_line(done, "standard output: No space left on device")
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "wb") as closed:
            done = subprocess.run(line, stdout=closed, stderr=subprocess.PIPE, check=False)
        assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("seconds", [0.3, 1.5, 3.0])
def test_ctrl_c_while_modules_are_imported(packed, seconds):
    arguments = ["generate", str(packed), "--prompt", "a", "--max-new-tokens", "200"]
    child = subprocess.Popen(
        [sys.executable, "-m", "tritllm", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background ignore it, and their children with them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(seconds)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    if child.returncode != 0:  # on a fast machine it may have ended before
        assert (child.returncode, said) == (130, "stopped\n")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("can't start new thread"), "no more threads can be started here"),
        (MemoryError(), "not enough memory"),
        (PermissionError(13, "Permission denied", "/some/file"), "/some/file: Permission denied"),
        (KeyError("x"), "unexpected KeyError: 'x' (TRITLLM_TRACEBACK=1 shows where)"),
    ],
)
def test_how_errors_are_told(error, says):
    assert says in entry._explain(error)
