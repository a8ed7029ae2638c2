"""The examples of README.md, run as they stand, in order, in one folder."""

import re
import runpy
import shlex
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
from support.hub_server import HubServer
from support.tiny_models import write_tiny
from support.tiny_text import write_text, write_tokenizer

import tritllm

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(python|bash)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
# A line of a shell: `tritllm ...` or `python file ...`.
PROGRAM = """
import runpy, sys

command, *sys.argv = sys.argv[1:]
if command == "tritllm":
    sys.argv = [command, *sys.argv]
    runpy.run_module("tritllm", run_name="__main__")
else:
    assert command == "python", command
    sys.path[0] = "."
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a reader stands: a clone, after `make demo`."""
    folder = tmp_path_factory.mktemp("clone")
    shutil.copy(ROOT / "quantize_model_v2.py", folder)
    for name in ("text.txt", "held-out.txt"):
        write_text(folder / name, letters=5000)
    model = files("tritllm") / "demo_data/model"
    tritllm.quantize(str(model), ["uniform-d4"], folder / "demo-out/configs")
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub with the model that the README names, only much smaller."""
    with HubServer() as server:
        source = tmp_path_factory.mktemp("hub") / "model"
        write_tiny(source, "qwen2")
        write_tokenizer(source)
        server.add("Qwen/Qwen2.5-0.5B", source)
        yield server


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_example(number, folder, hub, monkeypatch, tmp_path_factory, forked_program):
    language, code = BLOCKS[number]
    if language == "python":
        monkeypatch.chdir(folder)
        script = tmp_path_factory.mktemp("example") / "example.py"
        script.write_text(code)
        runpy.run_path(str(script))
        return
    environment = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "0",
    }
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        if "quantize" in line:
            shutil.rmtree(folder / "out", ignore_errors=True)
        done = forked_program(PROGRAM, *words, folder=folder, **environment)
        assert done.returncode == 0, (line, done.stdout, done.stderr)


def test_there_are_examples():
    assert [language for language, _ in BLOCKS].count("python") >= 2
    assert [language for language, _ in BLOCKS].count("bash") >= 3


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), (page.name, target)
