"""What `import tritllm` brings, and what it leaves to be brought when it is needed."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from support.model_folders import write_family

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


# Packages that are missing. None in sys.modules is what Python itself takes for "not there".
WITHOUT = """
import importlib.util, sys
for name in {missing!r}:
    sys.modules[name] = None
"""
FUNCTIONS = """
import tritllm
packed, source, out = sys.argv[1:]
for name, call in {
    "quantize": lambda: tritllm.quantize(source, ["uniform-d1"], out),
    "dequantize": lambda: tritllm.dequantize(packed, out),
    "push": lambda: tritllm.push(packed, "owner/name"),
    "card": lambda: tritllm.card(packed),
    "info": lambda: tritllm.info(source),
    "info of a Hub id": lambda: tritllm.info("owner/name"),
    "generate": lambda: tritllm.generate(packed, "a"),
    "bench": lambda: tritllm.bench(packed),
    "serve": lambda: tritllm.serve(packed),
    "demo": lambda: tritllm.demo(out),
    "verify": lambda: tritllm.verify(packed),
    "doctor": lambda: tritllm.doctor(),
}.items():
    try:
        call()
    except tritllm.TritError as error:
        print(f"{name}: {error}")
    else:
        print(f"{name}: done")
"""
NEEDS = """\
quantize: quantize needs huggingface_hub: pip install 'tritllm[quantize]'
dequantize: dequantize needs huggingface_hub: pip install 'tritllm[quantize]'
push: push needs huggingface_hub: pip install 'tritllm[quantize]'
card: reading a model card needs huggingface_hub: pip install 'tritllm[quantize]'
info: reading a model card needs huggingface_hub: pip install 'tritllm[quantize]'
info of a Hub id: reading from the Hub needs huggingface_hub: pip install 'tritllm[quantize]'
generate: generate needs torch: pip install 'tritllm[transformers]'
bench: bench needs torch: pip install 'tritllm[transformers]'
serve: serve needs torch: pip install 'tritllm[serve]'
demo: the demo needs matplotlib: pip install 'tritllm[demo]'
verify: done
doctor: done
"""
EXTRAS = sorted(HEAVY - {"numpy", "click"} | {"matplotlib", "accelerate", "fastapi", "safetensors"})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    source = write_family(tmp_path_factory.mktemp("import") / "source")
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    tritllm.quantize(str(source), ["uniform-d1"], source.parent / "out", threads=1)
    return source.parent / "out/uniform-d1/packed", source


def test_functions_say_which_packages_are_missing(folders, tmp_path):
    """With NumPy and ml_dtypes alone, as `pip install tritllm` leaves it; nothing is written."""
    code = WITHOUT.format(missing=EXTRAS) + FUNCTIONS
    line = [sys.executable, "-c", code, *map(str, folders), str(tmp_path / "out")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.stdout == NEEDS, done.stderr
    assert list(tmp_path.iterdir()) == []


COMMANDS = """
from tritllm.cli import entry
packed, source, out = sys.argv[1:]
for line in (
    ["quantize", "--model", source, "--configs", "uniform-d1", "--out", out],
    ["dequantize", packed, out],
    ["push", packed, "owner/name"],
    ["card", packed],
    ["info", source],
    ["generate", packed, "--prompt", "a"],
    ["bench", packed],
    ["serve", packed],
    ["demo", "--out", out],
):
    sys.argv = ["tritllm", *line]
    try:
        entry.run()
    except SystemExit as ended:
        assert ended.code == 1, line
"""


def test_commands_say_which_packages_are_missing(folders, tmp_path):
    """The command line itself is there, with typer and rich."""
    missing = [name for name in EXTRAS if name not in ("typer", "rich")]
    code = WITHOUT.format(missing=missing) + COMMANDS
    line = [sys.executable, "-c", code, *map(str, folders), str(tmp_path / "out")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    needs = [line.split(": ", 1)[1] for line in NEEDS.splitlines() if "Hub id" not in line]
    assert done.stderr.splitlines() == [f"error: {need}" for need in needs[:-2]]
    assert list(tmp_path.iterdir()) == []
