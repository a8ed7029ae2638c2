"""Which instruction sets this machine can run, and which one does the work.

The library holds the table (native/src/cpu/isa.cpp). Its functions come in families, and an
instruction set may leave a family to another one: AMX multiplies and leaves the codec to AVX-512.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Literal, get_args

from tritllm.errors import TritError
from tritllm.native.library import available, library

Family = Literal["codec", "products", "step"]
_FAMILIES = get_args(Family)  # by the numbers that the library gives them


@cache
def _names() -> tuple[str, ...]:
    """The instruction sets that the library knows, by number; later ones are faster."""
    names: list[str] = []
    while (name := library().tritllm_isa_name(len(names))) is not None:
        names.append(name.decode())
    return tuple(names)


@cache
def _serving(number: int, family: Family) -> int:
    return library().tritllm_isa_serving(number, _FAMILIES.index(family))


def isas(family: Family = "codec") -> list[str]:
    """The instruction sets whose functions of this family can run here, fastest first.

    An empty list without the library.
    """
    if not available():
        return []
    names = _names()
    here = [name for number, name in enumerate(names) if _serving(number, family) == number]
    return here[::-1]


def isa(family: Family = "codec") -> str:
    """The instruction set in use: the fastest, or the one that `TRITLLM_ISA` names.

    Raises TritError for a name that is unknown or cannot run here, RuntimeError without a library.
    """
    return _names()[isa_number(None, family)]


def isa_number(name: str | None, family: Family) -> int:
    """The library's number of the instruction set `name`, by default of `isa(family)`.

    In place of one that leaves this family to another, the number of that other.

    Raises ValueError for a name that is unknown or cannot run here, TritError where `TRITLLM_ISA`
    gives it, RuntimeError without a library.
    """
    names = _names()
    source = "isa"
    refusal: type[Exception] = ValueError
    if name is None:
        source, refusal = "TRITLLM_ISA", TritError
        name = os.environ.get("TRITLLM_ISA") or isas(family)[0]
    if name not in names:
        raise refusal(f"{source}={name}: unknown instruction set, not one of {', '.join(names)}")
    number = _serving(names.index(name), family)
    if number < 0:
        here = ", ".join(isas(family))
        raise refusal(f"{source}={name}: cannot run here; this machine has {here}")
    return number


def describe_isa(family: Family) -> str:
    """The instruction set in use, and what it was chosen from. Raises as `isa`."""
    chosen = "as TRITLLM_ISA says; " if os.environ.get("TRITLLM_ISA") else ""
    return f"{isa(family)} ({chosen}this machine can run: {', '.join(isas(family))})"
