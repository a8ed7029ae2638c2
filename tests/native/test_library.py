"""Loading, and the choice of the instruction set."""

import os
import subprocess
import sys

import pytest
from support.native_library import needs_library

from tritllm import TritError, native
from tritllm.native import library


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@needs_library
def test_the_fastest_is_used() -> None:
    assert native.load_error() is None
    assert native.isas()[-1] == "scalar"
    if "TRITLLM_ISA" not in os.environ:
        assert native.isa() == native.isas()[0]


@needs_library
@pytest.mark.parametrize("name", ["scalar", "avx2", "avx512", "neon", "amx"])
def test_one_can_be_forced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITLLM_ISA", name)
    if name in native.isas():
        assert native.isa() == name
    elif name in library.product_isas():
        assert native.isa() == library.CODEC_BESIDE[name]
    else:
        with pytest.raises(TritError, match=f"TRITLLM_ISA={name}: cannot run here; this machine"):
            native.isa()


@pytest.mark.skipif("avx512" not in native.isas(), reason="needs AVX-512")
def test_the_codec_takes_avx512_beside_the_products_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITLLM_ISA", "amx")
    monkeypatch.setattr(library, "product_isas", lambda: ["amx", *native.isas()])
    assert native.isa() == "avx512"
    assert library.choose_isa(None, library.product_isas()) == library.ISAS.index("amx")
    monkeypatch.setattr(library, "product_isas", native.isas)
    with pytest.raises(TritError, match="TRITLLM_ISA=amx: cannot run here; this machine has"):
        native.isa()


@needs_library
def test_an_unknown_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITLLM_ISA", "altivec")
    says = (
        "TRITLLM_ISA=altivec: unknown instruction set, .* amx; amx is of packed products, the codec"
    )
    with pytest.raises(TritError, match=says):
        native.isa()


def test_a_missing_library_is_reported() -> None:
    code = "from tritllm.native import *; print(available(), isas(), load_error())"
    out = python(code, TRITLLM_LIBRARY="nowhere/libtritllm.so")
    assert out.startswith("False [] ")
    assert "libtritllm.so does not exist" in out


def test_the_loaders_own_words_are_kept(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("library") / "libtritllm.so"
    path.write_text("not a library")
    code = (
        "from tritllm import native; print(native.load_error())\n"
        "try: native.isa()\n"
        "except RuntimeError as error: print(error)"
    )
    lines = python(code, TRITLLM_LIBRARY=str(path)).splitlines()
    assert len(lines) == 2
    assert len(lines[0]) > len(f"{path}: {path}")  # ctypes' message, whatever the platform's words
    assert lines[1] == f"the native library is not available: {lines[0]}"
