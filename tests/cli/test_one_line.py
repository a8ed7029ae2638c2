"""What a person gets wrong, typed as he would: one line on standard error, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tritllm import native
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


DOES_NOT_MATTER = {
    "bench": {"notokenizer"},
    "info": {"notokenizer"},
    # The manifest says it all.
    "card": {"notokenizer", "noshard", "truncated"},
    "report": {"notokenizer", "noshard", "truncated", "badconfig"},
}


def change_folder(folder: Path) -> str:
    return f"os.chdir({str(folder)!r})"


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
        ["chat"],
        ["bench", "--new-tokens", "1", "--no-compare"],
        ["serve", "--port", "0"],
        ["info"],
        ["verify"],
        ["card"],
        ["report", "--out", "new.html"],
        ["push", "owner/name"],
        ["dequantize", "new"],
    ],
    ids=lambda command: command[0],
)
def test_a_damaged_folder(kind, command, packed, tmp_path, forked_command_line):
    """`forked_command_line` fails a command that tries to reach the network, as push must not."""
    if kind in DOES_NOT_MATTER.get(command[0], ()):
        return
    folder = damage(kind, packed, tmp_path)
    command = [command[0], folder, *command[1:]]
    assert_one_line(forked_command_line(*command, expect=1, before=change_folder(tmp_path)), kind)
    assert os.listdir(tmp_path) == [kind]  # nothing half-written


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--prompt", "a\udcff"], "the prompt is not text"),
        (["--prompt", "a", "--seed", "-1"], "--seed -1 is not 0.."),
        (["--prompt", "a", "--seed", str(2**64)], "is not 0.."),
        (["--prompt", "a", "--seed", "9" * 400], "(400 digits)"),
        (["--prompt", "a", "--threads", str(10**9)], "--threads 1000000000 is not 1..256"),
        (["--prompt", "a", "--planes", "4"], "holds 2 planes, --planes 4 is not 1..2"),
        (["--prompt", "a" * 256], "the prompt of 256 tokens fills the model's context of 256"),
    ],
)
def test_what_generate_cannot_do(packed, arguments, says, forked_command_line):
    assert_one_line(forked_command_line("generate", packed, *arguments, expect=1), says)


def flip_a_byte(packed: Path, folder: Path, name: str) -> Path:
    """A copy of the packed folder in which one bit of this tensor's values is another."""
    shutil.copytree(packed, folder)
    with open(folder / "model.safetensors", "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[name]
        file.seek(8 + length + entry["data_offsets"][0])
        first = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([first ^ 1]))
    return folder


def test_generate_verifies_hashes_when_it_is_asked(packed, tmp_path, forked_command_line):
    options = ["--prompt", "a", "--max-new-tokens", "3"]
    plain = forked_command_line("generate", packed, *options)
    checked = forked_command_line("generate", packed, *options, "--verify")
    assert checked.stdout == plain.stdout
    flipped = flip_a_byte(packed, tmp_path / "flipped", "model.norm.weight")
    forked_command_line("generate", flipped, *options)  # a value as good as any other
    refused = forked_command_line("generate", flipped, *options, "--verify", expect=1)
    assert_one_line(refused, "model.norm.weight")
    assert refused.stdout == ""


def test_a_folder_whose_name_is_not_utf8(packed, tmp_path, forked_command_line):
    """Python's own reading takes it; the libraries that run a model cannot open it."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(packed, folder)
    for command in (
        ["generate", folder, "--prompt", "a"],
        ["bench", folder, "--new-tokens", "1"],
        ["serve", folder, "--port", "0"],
    ):
        refused = forked_command_line(*command, expect=1)
        assert_one_line(refused, "caf\\udce9': not valid UTF-8; rename it")
    assert "architecture" in forked_command_line("info", folder).stdout
    for command in (["verify", folder], ["card", folder], ["dequantize", folder, tmp_path / "new"]):
        done = forked_command_line(*command)
        assert done.stderr == ""
        assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("TRITLLM_ISA", ["generate", "--prompt", "a"]),
        ("TRITLLM_ISA", ["serve", "--port", "0"]),
        ("TRITLLM_ISA", ["dequantize", "new"]),
        ("TRITLLM_LINEAR", ["generate", "--prompt", "a"]),
        ("TRITLLM_LINEAR", ["serve", "--port", "0"]),
    ],
)
def test_a_variable_that_is_nonsense(packed, name, command, tmp_path, forked_command_line):
    if name == "TRITLLM_ISA" and not native.available():
        pytest.skip("no native library")
    command = [command[0], packed, *command[1:]]
    before = change_folder(tmp_path)
    done = forked_command_line(*command, expect=1, before=before, **{name: "nonsense"})
    assert_one_line(done, f"{name}=nonsense")
    assert os.listdir(tmp_path) == []


def test_a_native_library_that_is_none(packed, tmp_path, forked_command_line):
    """The NumPy reference takes its place, and one line says so."""
    (tmp_path / "no-library").touch()
    for library in (tmp_path / "nowhere", tmp_path / "no-library"):
        out = tmp_path / f"{library.name}-model"
        done = forked_command_line("dequantize", packed, out, TRITLLM_LIBRARY=str(library))
        assert done.stdout == f"{out}: written\n"
        assert done.stderr.startswith("warning: tritllm runs its NumPy reference")
        assert str(library) in done.stderr
        assert done.stderr.count("\n") == 1


def test_where_serve_cannot_listen(packed, forked_command_line):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = forked_command_line("serve", packed, "--port", str(port), expect=1)
        assert_one_line(done, f"cannot listen on localhost port {port}: Address already in use")
    for port in ("65536", "-1", "9" * 30):
        done = forked_command_line("serve", packed, "--port", port, expect=1)
        assert_one_line(done, "is not 0..65535")
    for host in ("nowhere.invalid", "1.2.3.4"):
        done = forked_command_line("serve", packed, "--host", host, expect=1)
        assert_one_line(done, f"cannot listen on {host} port 8000: ")


def test_a_file_in_the_outputs_place(packed, tmp_path, forked_command_line):
    file = tmp_path / "thesis.txt"
    file.write_text("years of work")
    source = packed.parents[2] / "source"
    for command in (
        ["dequantize", packed, file],
        ["demo", "--out", file],
        ["quantize", "--model", source, "--configs", "uniform-d1", "--out", file],
    ):
        assert_one_line(forked_command_line(*command, expect=1), str(file))
        assert file.read_text() == "years of work"
        assert os.listdir(tmp_path) == ["thesis.txt"]


def test_what_the_demo_cannot_read(tmp_path, forked_command_line):
    (tmp_path / "latin").write_bytes(b"\xe9" * 99)
    for option, value, says in (
        ("--text", tmp_path / "nowhere", "nowhere: No such file or directory"),
        ("--text", tmp_path / "latin", "latin: not UTF-8 text"),
        ("--calibrate", tmp_path / "latin", "latin: not UTF-8 text"),
        ("--model", tmp_path / "nowhere", "nowhere: no such folder"),
        ("--prompt", "a\udcff", "the prompt is not text"),
        ("--prompt", "", "the prompt has no tokens"),
    ):
        command = ["demo", "--out", tmp_path / "out", option, value]
        assert_one_line(forked_command_line(*command, expect=1), says)
        assert os.listdir(tmp_path) == ["latin"]


def test_what_eval_cannot_do(packed, tmp_path, forked_command_line):
    (tmp_path / "empty").touch()
    (tmp_path / "latin").write_bytes(b"abc\xe9")
    (tmp_path / "letter").write_text("a")
    (tmp_path / "text").write_text("In the beginning")
    source = packed.parents[2] / "source"
    for more, says in (
        (["--text", tmp_path / "empty"], "empty: an empty text"),
        (["--text", tmp_path / "latin"], "latin: not UTF-8 text (byte 3)"),
        (["--text", tmp_path / "letter"], "letter: too short, 1 tokens"),
        (["--text", tmp_path / "nowhere"], "nowhere: No such file"),
        (["--text", tmp_path / "text", "--planes", "many"], "--planes many: numbers"),
        (["--text", tmp_path / "text", "--json", tmp_path / "no/a"], "No such file or directory"),
        (["--text", tmp_path / "text", "--cache", tmp_path / "text"], "File exists"),
        ([tmp_path / "nowhere", "--text", tmp_path / "text"], "nowhere: no such folder"),
        ([tmp_path, "--text", tmp_path / "text"], "no config.json there"),
    ):
        done = forked_command_line("eval", packed, "--reference", source, *more, expect=1)
        done.stderr = "".join(x for x in done.stderr.splitlines(True) if not x.endswith(" ...\n"))
        assert_one_line(done, says)


# Every thread asks for more address space than there is.
WITHOUT_THREADS = (
    "import resource, os, sys\n"
    "resource.setrlimit(resource.RLIMIT_STACK, (16 << 30, resource.RLIM_INFINITY))\n"
    "resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))\n"
    "os.execv(sys.executable, [sys.executable, '-m', 'tritllm', *sys.argv[1:]])\n"
)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits")
def test_no_threads_left(packed, tmp_path):
    """OpenBLAS would send itself the signal of Ctrl-C, and OpenMP abort."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-c", WITHOUT_THREADS, *map(str, arguments)]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    for command in (["info", packed], ["dequantize", packed, tmp_path / "new"]):
        done = run(*command)
        assert (done.returncode, done.stderr) == (0, "")
    source = packed.parents[2] / "source"
    out = tmp_path / "out"
    for command in (
        ["quantize", "--model", source, "--configs", "uniform-d1", "--out", out],
        ["generate", packed, "--prompt", "a"],
    ):
        assert_one_line(run(*command), "can't start new thread; raise the limit of processes")
    assert not (out / "uniform-d1/packed").exists()


def test_a_full_context_is_said(packed, forked_command_line):
    done = forked_command_line("generate", packed, "--prompt", "a" * 250, "--max-new-tokens", "9")
    assert "stopped where the model's context of 256 tokens is full" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_and_a_closed_pipe(packed):
    line = [sys.executable, "-m", "tritllm", "info", str(packed)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert_one_line(done, "standard output: No space left on device")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:
        done = subprocess.run(line, stdout=closed, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"")


def test_ctrl_c_where_c_code_prints_what_an_import_raises(tmp_path):
    (tmp_path / "slow.py").write_text("import time\nprint('now', flush=True)\ntime.sleep(60)\n")
    program = """
import importlib
import traceback

from tritllm.cli.entry import run

def main():  # as NumPy's C code does: print what the import raised, and raise another error
    try:
        importlib.import_module("slow")
    except BaseException:
        traceback.print_exc()
        raise ImportError("slow failed to import") from None

run(main)
"""
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert child.stdout.readline() == "now\n"
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (130, "stopped\n")


# The command line, which hears Ctrl-C as it begins to import the module that is named first.
INTERRUPTED = """
import importlib.abc
import os
import signal
import sys

from tritllm.cli.entry import run

module = sys.argv.pop(1)

class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

# Tests that run in the background ignore it, and their children with them.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupting())
run()
"""


@pytest.mark.parametrize(
    "module", ["typer", "numpy.linalg", "torch.nn", "transformers.generation.utils"]
)
def test_ctrl_c_while_modules_are_imported(packed, module):
    arguments = ["generate", str(packed), "--prompt", "a"]
    line = [sys.executable, "-c", INTERRUPTED, module, *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("can't start new thread"), "can't start new thread; raise the limit"),
        (MemoryError(), "not enough memory"),
        (PermissionError(13, "Permission denied", "/some/file"), "/some/file: Permission denied"),
        (KeyError("x"), "unexpected KeyError: 'x' (TRITLLM_TRACEBACK=1 shows where)"),
    ],
)
def test_how_errors_are_told(error, says):
    assert says in entry._explain(error)
