"""The choice of the instruction set, for each family of functions."""

import pytest
from support.native_library import needs_library

from tritllm import TritError, native
from tritllm.native import instruction_sets as choice

pytestmark = needs_library

FAMILIES = ("codec", "products", "step")
NAMES = ("scalar", "avx2", "avxvnni", "avx512vnni", "avx512", "amx", "neon")
SERVED_BY = {"avxvnni": "avx2", "amx": "avx512"}  # which multiply, and leave the rest to others


def test_every_name_is_known_everywhere() -> None:
    assert choice._names() == NAMES


@pytest.mark.parametrize("family", FAMILIES)
def test_the_fastest_is_used(family: native.Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITLLM_ISA", raising=False)
    assert native.load_error() is None
    assert native.isas(family)[-1] == "scalar"
    assert native.isa(family) == native.isas(family)[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_one_can_be_forced(
    name: str, family: native.Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITLLM_ISA", name)
    if name in native.isas(family):
        assert native.isa(family) == name
    elif name in SERVED_BY and name in native.isas("products"):
        assert native.isa(family) == SERVED_BY[name]
    else:
        with pytest.raises(TritError, match=f"TRITLLM_ISA={name}: cannot run here; this machine"):
            native.isa(family)


def test_another_set_serves_a_family_that_a_set_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As AMX leaves the codec to AVX-512, on a machine that need not have either."""
    runs = {"codec": {0: 0, 4: 4, 5: 4}, "products": {0: 0, 4: 4, 5: 5}}
    monkeypatch.setattr(choice, "_serving", lambda number, family: runs[family].get(number, -1))
    assert native.isas("codec") == ["avx512", "scalar"]
    assert native.isas("products") == ["amx", "avx512", "scalar"]
    monkeypatch.setenv("TRITLLM_ISA", "amx")
    assert native.isa("codec") == "avx512"
    assert native.isa("products") == "amx"
    monkeypatch.setenv("TRITLLM_ISA", "avx2")
    with pytest.raises(TritError, match="cannot run here; this machine has amx, avx512, scalar"):
        native.isa("products")


def test_an_unknown_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITLLM_ISA", "altivec")
    says = (
        "TRITLLM_ISA=altivec: unknown instruction set, not one of scalar, avx2, avxvnni, "
        "avx512vnni, avx512, amx, neon"
    )
    with pytest.raises(TritError, match=says):
        native.isa()


def test_what_is_said_of_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    here = ", ".join(native.isas("codec"))
    monkeypatch.setenv("TRITLLM_ISA", "scalar")
    assert native.describe_isa("codec") == (
        f"scalar (as TRITLLM_ISA says; this machine can run: {here})"
    )
    monkeypatch.delenv("TRITLLM_ISA")
    fastest = native.isas("codec")[0]
    assert native.describe_isa("codec") == f"{fastest} (this machine can run: {here})"
