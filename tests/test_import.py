"""What `import tritllm` brings, and what it leaves to be brought when it is needed."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tritllm

REGISTRATION = "tritllm.integrations.registration"
ALLOWED = {"tritllm", "tritllm.version", "tritllm.integrations", REGISTRATION}
HEAVY = {
    "huggingface_hub", "torch", "transformers", "numpy", "scipy", "rich", "typer", "click",
    "jsonschema", "psutil", "yaml", "filelock",
}  # fmt: skip


def modules_after(code: str) -> set[str]:
    """Names in sys.modules after running this in an interpreter of its own."""
    code = f"{code}\nimport sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_brings_nothing_but_the_registration():
    found = modules_after("import tritllm")
    assert {name for name in found if name.split(".")[0] == "tritllm"} == ALLOWED
    assert not found & HEAVY


@pytest.mark.parametrize(
    "code",
    [
        "tritllm.encode(numpy.zeros((2, 16), numpy.float32), 1).decode()",
        "tritllm.PackedCheckpoint, tritllm.verify",
        "tritllm.TritError",
    ],
)
def test_the_codec_and_the_file_need_numpy_alone(code):
    """NumPy and ml_dtypes are what pip installs with tritllm; anything else is an extra."""
    found = modules_after(f"import numpy, tritllm; {code}")
    assert found & HEAVY <= {"numpy"}


def test_each_name_is_there_and_is_what_type_checkers_see():
    tree = ast.parse(Path(tritllm.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        name.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert seen == tritllm._MODULE_OF
    for name, module in seen.items():
        assert getattr(tritllm, name) is getattr(importlib.import_module(module), name)
        assert name in dir(tritllm)
        assert name in tritllm.__all__


def test_importing_a_module_does_not_replace_a_function():
    code = "import tritllm.run.demo, tritllm.publish.card, tritllm; assert callable(tritllm.demo)"
    modules_after(code)


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        tritllm.quantise  # noqa: B018


WITHOUT_TYPER = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "typer" else find(name)
from tritllm.cli.entry import run
run()
"""


def test_the_command_line_without_typer():
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-c", WITHOUT_TYPER, *arguments]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    done = command("info", "x")
    assert done.returncode == 1
    assert done.stderr == "error: the command line needs typer: pip install 'tritllm[cli]'\n"
    told = command("doctor")
    assert told.returncode == 0, told.stderr
    assert "-- typer: not installed; needed for the command line: pip install" in told.stdout
