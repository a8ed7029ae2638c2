"""Every command as a person types it: what it prints, where, and how it exits."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.model_folders import (
    hashes,
    llama,
    random_tensors,
    result_hashes,
    split,
    write_family,
    write_model,
)
from support.native_library import needs_library
from typer.testing import CliRunner

import tritllm
from tritllm import native, quantize, verify
from tritllm.cli import entry
from tritllm.cli.main import app

ROOT = Path(__file__).parents[2]
COMMANDS = ("quantize", "info", "report", "verify", "dequantize", "card", "push", "doctor", "demo",
            "generate", "chat", "serve", "bench", "eval")  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = write_family(tmp_path_factory.mktemp("cli") / "source", shards=2)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: a/b\n---\n")
    return folder


@pytest.fixture(scope="module")
def out(source):
    quantize(str(source), ["uniform-d2"], source.parent / "out")
    return source.parent / "out"


def run(*arguments: object) -> str:
    """A command within this process; returns what it printed."""
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def one_line_of_error(stderr: str) -> str:
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith("error: ")
    return stderr.removeprefix("error: ").rstrip("\n")


@pytest.fixture
def fails(monkeypatch, capsys):
    """The entry point within this process: exits 1, prints nothing; returns its line of error."""

    def run_main(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["tritllm", *map(str, arguments)])
        monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)  # pytest's stays
        with pytest.raises(SystemExit) as raised:
            entry.run()
        assert raised.value.code == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        return one_line_of_error(printed.err)

    return run_main


# Help


def test_help_names_every_command():
    text = run("--help")
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", text)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command):
    text = run(command, "--help")
    assert "Usage:" in text
    assert len(text.splitlines()) > 5


def test_version():
    assert run("--version") == f"tritllm {tritllm.__version__}\n"


def test_no_command_shows_the_help():
    result = CliRunner().invoke(app, [])
    assert "Usage:" in result.output


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["quantize"], ["quantize", "--model", "x"], ["verify"]]
)
def test_wrong_usage_exits_2(arguments):
    assert CliRunner().invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize("threads", ["0", "-1", "many"])
def test_threads_must_be_a_count(source, tmp_path, threads):
    arguments = ["--model", str(source), "--configs", "uniform-d1", "--out", str(tmp_path / "o")]
    result = CliRunner().invoke(app, ["quantize", *arguments, "--threads", threads])
    assert result.exit_code == 2
    assert not (tmp_path / "o").exists()


def test_starting_takes_neither_torch_nor_transformers():
    """The command line is for machines that have neither, and must start at once."""
    code = "import sys, tritllm.cli.main; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# Happy paths


def test_quantize_prints_plan_tensors_and_report(source, tmp_path, command_line):
    done = command_line(
        "quantize", "--model", source, "--configs", "uniform-d1,uniform-d2", "--out", tmp_path / "o"
    )
    assert "14 linear weights to quantize" in done.stdout
    assert re.search(r"kept, norm: 5 \(.*, \.\.\.\)", done.stdout)
    assert "disk needed" in done.stdout
    for config in ("uniform-d1", "uniform-d2"):
        for kind in ("packed", "model"):
            assert f"{tmp_path}/o/{config}/{kind}\n" in done.stdout
    assert "bits a weight in the file" in done.stdout
    lines = done.stderr.splitlines()
    assert 5 < len(lines) <= 21
    assert re.fullmatch(
        r" \d\d %  \d+\.\d\d kB of \d+\.\d\d kB  .*\.\w+_proj\.weight"
        r"  SQNR dB:  uniform-d1 \d+\.\d\d  uniform-d2 \d+\.\d\d"
        r"  about \d+ s left",
        lines[2],
    )
    assert lines[-1].startswith("100 %")
    two = r"\d+\.\d\d \d+\.\d\d"
    for kind in ("self_attn.q_proj", "mlp.down_proj"):
        assert re.search(rf"^{kind} +2 +[\d,]+ +{two} +{two}$", done.stdout, re.MULTILINE)
    assert done.stdout.count(".weight  ") == 10  # the worst, by name
    verify(tmp_path / "o/uniform-d1/packed")


def test_quantize_with_every_option(source, tmp_path):
    run(
        "quantize", "--model", source, "--configs", "uniform-d2", "--out", tmp_path / "cli",
        "--codec", "v2", "--write", "packed", "--dtype", "bfloat16", "--include", "lm_head.weight",
        "--exclude", "*.1.mlp.*", "--exclude", "*.q_proj.*", "--depth", "*.0.*=3",
        "--depth", "lm_head=4", "--threads", "1",
    )  # fmt: skip
    quantize(
        str(source), ["uniform-d2"], tmp_path / "api", codec="v2", write=["packed"],
        dtype="bfloat16", include=["lm_head.weight"], exclude=["*.1.mlp.*", "*.q_proj.*"],
        depth=["*.0.*=3", "lm_head=4"],
    )  # fmt: skip
    assert result_hashes(tmp_path / "cli") == result_hashes(tmp_path / "api")


def test_the_command_on_the_card_gives_the_same_bytes(source, tmp_path, monkeypatch):
    first = tmp_path / "first"
    arguments = ["--include", "lm_head.weight", "--depth", "*.0.*=1", "--codec", "v2"]
    run("quantize", "--model", source, "--configs", "uniform-d3", "--out", first, *arguments)
    manifest = json.loads((first / "uniform-d3/packed/tritllm.json").read_text())
    import shlex

    words = shlex.split(manifest["command"])
    assert words[0] == "tritllm"
    (tmp_path / "source").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    run(*words[1:])
    assert result_hashes(tmp_path / "out") == result_hashes(first)


def test_dry_run_prints_the_plan_and_writes_nothing(source, tmp_path):
    text = run(
        "quantize",
        "--model",
        source,
        "--configs",
        "uniform-d2",
        "--out",
        tmp_path / "o",
        "--dry-run",
    )
    assert "disk needed" in text
    assert "dry run: nothing written" in text
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_again_prints_the_same_report(source, out):
    text = run("quantize", "--model", source, "--configs", "uniform-d2", "--out", out)
    assert "bits a weight in the file" in text


def test_verify_says_what_it_checked(out):
    text = run("verify", out / "uniform-d2/packed")
    assert "verified, 14 quantized weights, " in text
    assert len(text.splitlines()) == 1


def test_info_of_a_packed_and_of_a_plain_folder(source, out):
    packed = run("info", out / "uniform-d2/packed")
    for words in (r"licence +apache-2.0", r"depth +d=2 \(9 levels\)", r"3\.47 information"):
        assert re.search(words, packed), packed
    plain = run("info", source)
    assert re.search(r"base model +a/b", plain)
    assert re.search(r"depth +not quantized by tritllm", plain)
    assert re.search(r"stored as +F16", plain)


def test_dequantize_equals_the_model_folder(out, tmp_path):
    text = run("dequantize", out / "uniform-d2/packed", tmp_path / "model")
    assert text == f"{tmp_path / 'model'}: written\n"
    assert hashes(tmp_path / "model") == hashes(out / "uniform-d2/model")


def test_dequantize_into_the_current_folder(out, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run("dequantize", out / "uniform-d2/packed", ".", "--planes", "1")
    monkeypatch.undo()
    assert (tmp_path / "here/config.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"here"}


def test_card_writes_the_same_card(out):
    packed = out / "uniform-d2/packed"
    before = hashes(packed)
    assert run("card", packed) == f"{packed}/README.md: written\n"
    assert hashes(packed) == before


def test_the_published_command_is_codec_v2(source, tmp_path):
    arguments = ["--model", str(source), "--configs", "uniform-d1,uniform-d3"]
    subprocess.run(
        [sys.executable, ROOT / "quantize_model_v2.py", *arguments, "--out", tmp_path / "script"],
        check=True,
        capture_output=True,
    )
    run("quantize", *arguments, "--out", tmp_path / "command", "--codec", "v2")
    assert result_hashes(tmp_path / "script") == result_hashes(tmp_path / "command")
    run("quantize", *arguments, "--out", tmp_path / "v3")
    assert result_hashes(tmp_path / "script") != result_hashes(tmp_path / "v3")


# Errors


def test_the_published_command_gives_one_line_of_error(tmp_path):
    arguments = ["--model", "./nowhere", "--configs", "uniform-d1", "--out", str(tmp_path / "o")]
    done = subprocess.run(
        [sys.executable, ROOT / "quantize_model_v2.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert one_line_of_error(done.stderr).startswith("./nowhere: no such folder")


def test_an_error_is_one_line_and_exit_code_1(tmp_path, command_line):
    folder = tmp_path / ("x" * 100) / ("y" * 100)
    done = command_line(
        "quantize", "--model", folder, "--configs", "uniform-d1", "--out", tmp_path / "o", expect=1
    )
    line = one_line_of_error(done.stderr)
    assert line == f"{folder}: no such folder, and not a Hub id (owner/name)"
    assert done.stdout == ""
    assert not (tmp_path / "o").exists()


def test_brackets_in_names_are_not_markup(tmp_path, fails):
    assert "[bold]x[/bold]" in fails("verify", tmp_path / "[bold]x[/bold]")


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("info", []),
        ("verify", []),
        ("card", []),
        ("report", []),
        ("dequantize", ["model"]),
        ("push", ["me/name"]),
    ],
)
def test_each_command_refuses_a_folder_that_is_not_there(tmp_path, command, arguments, fails):
    assert "nowhere" in fails(command, tmp_path / "nowhere", *arguments)


@pytest.mark.parametrize(
    "extra", [["--configs", "uniform-d9"], ["--configs", "uniform-d1", "--codec", "v1"]]
)
def test_quantize_refuses_what_it_does_not_know(source, tmp_path, extra, fails):
    line = fails("quantize", "--model", source, "--out", tmp_path / "o", *extra)
    assert line.startswith("unknown ")


@needs_library
@pytest.mark.parametrize("name", ["altivec", "neon"])
def test_an_instruction_set_that_cannot_be(source, out, tmp_path, command_line, name):
    if name in native.isas():
        pytest.skip("needs a machine without NEON")
    quantizing = ("quantize", "--model", source, "--configs", "uniform-d1", "--out", tmp_path / "o")
    for arguments in (quantizing, ("dequantize", out / "uniform-d2/packed", tmp_path / "m")):
        done = command_line(*arguments, expect=1, TRITLLM_ISA=name)
        assert one_line_of_error(done.stderr).startswith(f"TRITLLM_ISA={name}: ")


def test_an_error_amid_the_tensors_is_the_last_line(tmp_path, command_line):
    tensors = random_tensors(llama())
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = np.nan
    source = write_model(tmp_path / "source", {"model_type": "llama"}, [tensors])
    done = command_line(
        "quantize", "--model", source, "--configs", "uniform-d1", "--out", tmp_path / "o", expect=1
    )
    *steps, last = done.stderr.splitlines()
    assert last.startswith("error: model.safetensors: tensor model.layers.1.mlp.down_proj.weight: ")
    assert 5 < len(steps) <= 13
    assert "Traceback" not in done.stderr


# The command, slow enough to be stopped in the middle.
SLOWLY = """
import time
from tritllm.quantizer import shard_encoder
from tritllm.cli.entry import run

encode = shard_encoder.encode_source
shard_encoder.encode_source = lambda *arguments: (time.sleep(0.3), encode(*arguments))[1]
run()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child")
def test_ctrl_c_says_how_to_go_on(tmp_path):
    tensors = random_tensors(llama(hidden=256, inner=512, layers=3), np.float32)
    source = write_model(tmp_path / "source", {"model_type": "llama"}, split(tensors, 2))
    arguments = ["quantize", "--model", str(source), "--configs", "uniform-d1,uniform-d4"]
    arguments += ["--out", str(tmp_path / "out"), "--threads", "1"]
    child = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run in the background ignore it, and their children with them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    child.stderr.readline()
    child.send_signal(signal.SIGINT)
    rest = child.stderr.read()
    child.stderr.close()
    assert child.wait() == 130
    assert rest.splitlines()[-1] == "stopped; run the same command again to go on"
    assert "Traceback" not in rest
    run(*arguments)
    verify(tmp_path / "out/uniform-d4/packed")
