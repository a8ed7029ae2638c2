"""The functions of native/include/tritllm_linear.h and tritllm_step.h in the native library."""

from __future__ import annotations

import ctypes
from functools import cache

from tritllm.native import library as native


class Portable(ctypes.Structure):
    """tritllm_portable."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("plane_stride", ctypes.c_int64),
        ("scale", ctypes.c_void_p),
        ("steps", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("depth", ctypes.c_int32),
    )


class Input(ctypes.Structure):
    """tritllm_input."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("batch", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("dtype", ctypes.c_int32),
        ("exact", ctypes.c_int32),
    )


class Product(ctypes.Structure):
    """tritllm_product."""

    _fields_ = (
        ("prepared", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("bias_dtype", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
    )


_INT, _INT64, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
_SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "tritllm_linear_size": (_INT64, (_INT, _INT64, _INT64, _INT)),
    "tritllm_linear_prepare": (_INT, (_INT, _POINTER, _INT64, _INT64, _POINTER)),
    "tritllm_linear_check": (_INT, (_POINTER, _INT64)),
    "tritllm_linear_activations_size": (_INT64, (_INT64, _INT64, _INT)),
    "tritllm_linear_begin": (_INT, (_POINTER, _POINTER)),
    "tritllm_linear_quantize": (_INT, (_POINTER, _INT64, _INT64, _POINTER)),
    "tritllm_linear_compute": (_INT, (_POINTER, _POINTER, _INT64, _INT64)),
    "tritllm_linear_run": (_INT, (_INT, _POINTER, _POINTER, _POINTER, _INT)),
    "tritllm_linear_use_openmp": (None, (_POINTER,)),
    "tritllm_llama_step_scratch": (_INT64, (_POINTER, _INT64, _INT64)),
    "tritllm_llama_step": (_INT, (_INT, _POINTER, _INT64, _POINTER, _POINTER)),
}


@cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    if not native.available():
        return None, native.load_error()
    library = native.library()
    try:
        native.bind(library, _SIGNATURES)
    except AttributeError as error:
        return None, f"the native library is older than this package: {error}"
    return library, None


def available() -> bool:
    """Whether the library is loaded and has these functions."""
    return _load()[0] is not None


def load_error() -> str | None:
    """Why not; None where it is available."""
    return _load()[1]


def library() -> ctypes.CDLL:
    """The loaded library. Raises RuntimeError where there is none."""
    loaded, error = _load()
    if loaded is None:
        raise RuntimeError(f"packed products are not available: {error}")
    return loaded


@cache
def isas() -> list[str]:
    """The instruction sets that this machine and this build can run, fastest first; [] unloaded."""
    return native.product_isas() if available() else []


def isa() -> str:
    """The instruction set in use: the fastest, or the one that `TRITLLM_ISA` names.

    Raises TritError for a name that is unknown or cannot run here, RuntimeError without a library.
    """
    return native.ISAS[isa_number(None)]


def isa_number(name: str | None) -> int:
    """The library's number of `name`, by default of `isa()`. Raises as `native.choose_isa`."""
    library()
    return native.choose_isa(name, isas())


@cache
def use_openmp() -> bool:
    """Let products run on the threads of an OpenMP runtime that is loaded, so that two pools do not
    compete for the cores; whether there is one. For callers in a process that has torch.
    """
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        return False
    library().tritllm_linear_use_openmp(ctypes.cast(parallel, ctypes.c_void_p))
    return True
