"""Finds and loads the shared library, and says which instruction sets it can run here."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from tritllm.errors import TritError

ABI = 1
ISAS = ("scalar", "avx2", "avx512", "neon", "amx")  # by the number that the library knows them by
FASTEST_FIRST = ("amx", "avx512", "avx2", "neon", "scalar")
CODEC_BESIDE = {"amx": "avx512"}  # sets of the packed products alone, and the codec's beside each
OK, UNSUPPORTED, BAD_BYTE, BAD_PADDING, BAD_ARGUMENT = range(5)

SAMPLE = 3072
GRID = 256
TILE = 16


class Matrix(ctypes.Structure):
    """tritllm_matrix of native/include/tritllm.h."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("exponent", ctypes.c_int32),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
    )


class SampleSet(ctypes.Structure):
    """tritllm_sample_set of native/include/tritllm.h."""

    _fields_ = (
        ("count", ctypes.c_int64),
        ("largest", ctypes.c_float),
        ("body_weight", ctypes.c_double),
        ("group", ctypes.c_int64 * SAMPLE),
        ("in_tail", ctypes.c_uint8 * SAMPLE),
    )


class Target(ctypes.Structure):
    """tritllm_target of native/include/tritllm.h."""

    _fields_ = (
        ("depth", ctypes.c_int32),
        ("search", ctypes.c_int32),
        ("codebook", ctypes.c_void_p),
        ("published", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("row_error", ctypes.c_void_p),
        ("row_limit", ctypes.c_void_p),
        ("row_dot", ctypes.c_void_p),
        ("row_norm", ctypes.c_void_p),
    )


class Packed(ctypes.Structure):
    """tritllm_packed of native/include/tritllm.h."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("plane_stride", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("scale", ctypes.c_void_p),
        ("scale_stride", ctypes.c_int64),
        ("steps", ctypes.c_void_p),
        ("columns", ctypes.c_int64),
        ("planes", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("out", ctypes.c_void_p),
        ("out_stride", ctypes.c_int64),
    )


_INT, _INT64, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
_SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "tritllm_abi": (_INT, ()),
    "tritllm_isas": (_INT, ()),
    "tritllm_linear_isas": (_INT, ()),
    "tritllm_tiled": (_INT64, (_INT64, _INT64)),
    "tritllm_peak": (_INT, (_INT, _POINTER, _INT64, _INT64, _POINTER)),
    "tritllm_first_nonfinite": (_INT64, (_POINTER,)),
    "tritllm_measure": (
        _INT,
        (_INT, _POINTER, _INT64, _INT64, _INT, _POINTER, _POINTER, _POINTER, _POINTER),
    ),
    "tritllm_v2_codebook": (_INT, (_POINTER, _INT64, _POINTER, _POINTER)),
    "tritllm_sample": (_INT, (_POINTER, _INT64, _INT64, _POINTER)),
    "tritllm_gather": (_INT, (_POINTER, _POINTER, _POINTER)),
    "tritllm_grid": (_INT, (_POINTER, _POINTER, _POINTER)),
    "tritllm_tabulate": (
        _INT,
        (_INT, _POINTER, _POINTER, _POINTER, _INT, _INT, _INT, _POINTER),
    ),
    "tritllm_fit": (_INT, (_POINTER, _POINTER, _POINTER, _POINTER, _POINTER)),
    "tritllm_write": (_INT, (_INT, _POINTER, _INT64, _INT64, _INT, _POINTER)),
    "tritllm_pack_trits": (None, (_POINTER, _INT64, _INT64, _POINTER)),
    "tritllm_unpack_trits": (_INT, (_POINTER, _INT64, _INT64, _POINTER)),
    "tritllm_pack_scale_index": (None, (_POINTER, _INT64, _INT64, _POINTER)),
    "tritllm_unpack_scale_index": (_INT, (_POINTER, _INT64, _INT64, _POINTER)),
    "tritllm_dequantize": (_INT, (_INT, _POINTER, _INT64, _INT64)),
}


def bind(
    library: ctypes.CDLL, signatures: Mapping[str, tuple[type | None, tuple[type, ...]]]
) -> None:
    """Declare the functions' types. Raises AttributeError for one that the library lacks."""
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


def _path() -> Path:
    named = os.environ.get("TRITLLM_LIBRARY")
    if named:
        return Path(named)
    name = {"win32": "tritllm.dll", "darwin": "libtritllm.dylib"}.get(sys.platform, "libtritllm.so")
    return Path(__file__).parent / name


@cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    path = _path()
    if not path.exists():
        remedy = "install tritllm again where there is a C++ compiler"
        if os.environ.get("TRITLLM_LIBRARY"):
            remedy = "TRITLLM_LIBRARY names it"
        return None, f"{path} does not exist; {remedy}"
    try:
        library = ctypes.CDLL(str(path))
        bind(library, _SIGNATURES)
    except (OSError, AttributeError) as error:
        return None, f"{path}: {error}"
    if library.tritllm_abi() != ABI:
        return None, f"{path}: interface version {library.tritllm_abi()}, expected {ABI}"
    return library, None


def available() -> bool:
    """Whether the library is loaded."""
    return _load()[0] is not None


def load_error() -> str | None:
    """Why the library is not loaded, in the loader's own words; None where it is."""
    return _load()[1]


def library() -> ctypes.CDLL:
    """The loaded library. Raises RuntimeError where there is none."""
    loaded, error = _load()
    if loaded is None:
        raise RuntimeError(f"the native library is not available: {error}")
    return loaded


def isas() -> list[str]:
    """The codec's sets that this machine and this build can run, fastest first; [] unloaded."""
    return named_isas(library().tritllm_isas()) if available() else []


def product_isas() -> list[str]:
    """As `isas`, of the packed products."""
    return named_isas(library().tritllm_linear_isas()) if available() else []


def named_isas(mask: int) -> list[str]:
    """The names of a mask's bits, bit i being ISAS[i], fastest first."""
    return [name for name in FASTEST_FIRST if mask >> ISAS.index(name) & 1]


def isa() -> str:
    """The codec's instruction set: the fastest, or the one that `TRITLLM_ISA` names.

    Raises TritError for a name that is unknown or cannot run here, RuntimeError without a library.
    """
    return ISAS[isa_number(None)]


def isa_number(name: str | None) -> int:
    """The library's number of `name`, by default of `isa()`. Raises as `choose_isa`."""
    library()
    return choose_isa(name, isas())


def choose_isa(name: str | None, here: Sequence[str]) -> int:
    """The library's number of an instruction set that is in `here` (fastest first).

    By default that of `TRITLLM_ISA`, else the fastest. In place of one that only the packed
    products have, the codec takes the one beside it.

    Raises ValueError for a name that is unknown or cannot run here, TritError where `TRITLLM_ISA`
    gives it.
    """
    source = "isa"
    refusal: type[Exception] = ValueError
    if name is None:
        source, refusal = "TRITLLM_ISA", TritError
        name = os.environ.get("TRITLLM_ISA") or here[0]
    if name not in ISAS:
        beside = "".join(
            f"; {n} is of packed products, the codec then takes {c}"
            for n, c in CODEC_BESIDE.items()
        )
        raise refusal(
            f"{source}={name}: unknown instruction set, not one of {', '.join(ISAS)}{beside}"
        )
    if name not in here and name in product_isas():
        name = CODEC_BESIDE.get(name, name)
    if name not in here:
        raise refusal(f"{source}={name}: cannot run here; this machine has {', '.join(here)}")
    return ISAS.index(name)


def describe_isa(name: str, here: Sequence[str]) -> str:
    """An instruction set in use, and what it was chosen from."""
    chosen = "as TRITLLM_ISA says; " if os.environ.get("TRITLLM_ISA") else ""
    return f"{name} ({chosen}this machine can run: {', '.join(here)})"


def check(status: int) -> None:
    """Raises RuntimeError for a status that the callers' own checks should have made impossible."""
    if status != OK:
        raise RuntimeError(f"the native library returned status {status}")
