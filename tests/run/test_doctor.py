"""tritllm doctor: what is used here and why, in whatever state the machine is; it exits with 0."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys
from types import SimpleNamespace

import pytest
from support.native_library import needs_library
from typer.testing import CliRunner

from tritllm import native
from tritllm.cli.main import app
from tritllm.native import library
from tritllm.storage import mapped_pages
from tritllm.storage.mapped_pages import Released


@pytest.fixture
def doctor(monkeypatch):
    """doctor(NAME=value, ...): its lines by subject, as [ok or --, what it says]."""

    def run(**environment: str) -> dict[str, list[str]]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        result = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
        assert result.exit_code == 0
        return by_subject(result.stdout)

    return run


def by_subject(text: str) -> dict[str, list[str]]:
    said: dict[str, list[str]] = {}
    for line in text.splitlines():
        if re.match(r" (ok|--) ", line):
            mark, subject, says = re.split(" +", line.strip(), maxsplit=2)
            said[subject] = [mark, says]
        else:
            said[subject][1] += f" {line.strip()}"
    return said


def test_it_names_what_it_uses(doctor):
    said = doctor()
    for subject in ("tritllm", "python", "machine", "memory", "numpy", "torch", "transformers"):
        assert said[subject][0] == "ok"
    assert said["codec"][0] == ("ok" if native.available() else "--")
    assert said["kernels"][0] == ("ok" if native.available() else "--")


@needs_library
def test_the_kernels_and_why(doctor, monkeypatch):
    monkeypatch.delenv("TRITLLM_ISA", raising=False)
    monkeypatch.delenv("TRITLLM_LINEAR", raising=False)
    here = ", ".join(native.isas())
    ok, says = doctor()["kernels"]
    assert ok == "ok"
    assert re.fullmatch(rf"native kernels, \w+ \(.* run: .*{here}\), activations in int8", says)
    assert doctor(TRITLLM_ISA="scalar", TRITLLM_LINEAR="exact")["kernels"] == [
        "ok",
        f"native kernels, scalar (as TRITLLM_ISA says; this machine can run: {here}), "
        "activations in float32 (TRITLLM_LINEAR=exact)",
    ]


@pytest.mark.parametrize(
    ("found", "mark", "says"),
    [
        (Released(4096, 4096), "ok", "given back to the system"),
        (Released(8192, 4096), "--", "4096 of 8192 bytes of a trial file were given back"),
        (Released(0, 0), "ok", "not tried, "),
        (OSError("no space left"), "--", "cannot be tried: no space left"),
    ],
)
def test_mapped_pages(doctor, monkeypatch, found, mark, says):
    def probe():
        if isinstance(found, OSError):
            raise found
        return found

    monkeypatch.setattr(mapped_pages, "probe", probe)
    assert doctor()["pages"][0] == mark
    assert doctor()["pages"][1].startswith(says)


def test_kernels_that_are_not_wanted(doctor):
    assert doctor(TRITLLM_LINEAR="torch")["kernels"] == [
        "ok",
        "torch, which decodes the weights at every call: TRITLLM_LINEAR=torch",
    ]


@needs_library
@pytest.mark.parametrize(
    ("name", "value", "subjects"),
    [
        ("TRITLLM_LINEAR", "fast", ["kernels"]),
        ("TRITLLM_ISA", "altivec", ["codec", "kernels"]),
        ("TRITLLM_ISA", "neon", ["codec", "kernels"]),
    ],
)
def test_what_cannot_be_is_said_and_no_failure(doctor, name, value, subjects):
    if value in native.isas():
        pytest.skip("needs a machine without NEON")
    said = doctor(**{name: value})
    for subject in subjects:
        assert said[subject][0] == "--"
        assert said[subject][1].startswith(f"{name}={value}")


def test_without_the_library(tmp_path, command_line):
    """As where there was no compiler, or where TRITLLM_LIBRARY names what is not there."""
    missing = tmp_path / "libtritllm.so"
    said = by_subject(command_line("doctor", TRITLLM_LIBRARY=str(missing)).stdout)
    assert said["codec"][0] == said["kernels"][0] == "--"
    for subject, instead in (("codec", "NumPy reference"), ("kernels", "torch")):
        assert said[subject][1].startswith(instead)
        assert said[subject][1].endswith("does not exist; TRITLLM_LIBRARY names it")


def test_the_remedy_for_a_library_that_was_not_built(monkeypatch, tmp_path):
    monkeypatch.delenv("TRITLLM_LIBRARY", raising=False)
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    _, error = library._load.__wrapped__()
    assert error.endswith("does not exist; install tritllm again where there is a C++ compiler")


@pytest.mark.parametrize(
    ("capability", "triton", "asked", "mark", "says"),
    [
        ((9, 0), True, "int8", "ok", r"9\.0: Triton [\d.]+ kernels on H100"),
        ((9, 0), True, "torch", "ok", r"9\.0: torch, which decodes .*: TRITLLM_LINEAR=torch"),
        ((7, 5), True, "int8", "--", r"7\.5: torch, which decodes .* the kernels need 8\.0 or .*"),
        (
            (8, 0),
            False,
            "int8",
            "--",
            r"8\.0: torch, which decodes .*: triton is not installed; .*",
        ),
    ],
)
def test_a_gpu(doctor, monkeypatch, capability, triton, asked, mark, says):
    torch = pytest.importorskip("torch")
    from tritllm.ops.backends import cuda

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(cuda, "find_spec", lambda name: triton or None)
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__="3.7.1"))
    cuda.why_not.cache_clear()
    try:
        found, text = doctor(TRITLLM_LINEAR=asked)["gpu"]
    finally:
        cuda.why_not.cache_clear()
    assert found == mark
    assert re.fullmatch(f"H100, compute capability {says}", text), text


def test_no_gpu_is_no_fault_and_a_broken_driver_is(doctor, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert doctor()["gpu"] == ["ok", f"none found: torch {torch.__version__} has no CUDA"]

    def broken() -> bool:
        raise RuntimeError("CUDA driver version is insufficient\nmore")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    assert doctor()["gpu"] == ["--", "cannot be asked: CUDA driver version is insufficient"]


@pytest.mark.parametrize(
    ("points", "chosen", "mark", "says"),
    [
        (["tritllm"], None, "ok", "0.33.0, with tritllm's plugin"),
        (["tritllm"], "other,tritllm", "ok", "0.33.0, with tritllm's plugin"),
        (["other"], None, "--", "0.33.0, without tritllm's plugin: install tritllm again"),
        (["tritllm"], "a", "--", "0.33.0, which leaves out tritllm's plugin: VLLM_PLUGINS=a"),
    ],
)
def test_vllm_and_its_plugin(doctor, monkeypatch, points, chosen, mark, says):
    find, version = importlib.util.find_spec, importlib.metadata.version
    found = [importlib.metadata.EntryPoint(name, "a:b", "group") for name in points]
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: True if n == "vllm" else find(n))
    monkeypatch.setattr(
        importlib.metadata, "version", lambda n: "0.33.0" if n == "vllm" else version(n)
    )
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: found)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    environment = {} if chosen is None else {"VLLM_PLUGINS": chosen}
    assert doctor(**environment)["vllm"] == [mark, says]


def test_vllm_that_is_not_there(doctor, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "vllm" else find(n))
    assert doctor()["vllm"][0] == "--"
    assert doctor()["vllm"][1].endswith("pip install vllm")


def test_a_package_that_is_missing_and_how_to_get_it(doctor, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "torch" else find(n))
    said = doctor()
    for subject, extra in (("torch", "transformers"), ("kernels", "transformers")):
        assert said[subject][0] == "--"
        assert said[subject][1].endswith(f"pip install 'tritllm[{extra}]'")


def test_torch_and_transformers_that_cannot_be_imported(tmp_path, command_line):
    for name in ("torch", "transformers"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    said = by_subject(command_line("doctor", PYTHONPATH=path).stdout)
    assert said["kernels"] == [
        "--",
        "none: packed layers need torch, which cannot be imported: not here",
    ]
