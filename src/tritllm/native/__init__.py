"""The native library and nothing else: loaded once, its functions and structures, threads, arrays.

The library is plain C behind ctypes and lies beside this file; `TRITLLM_LIBRARY` names another one.
`TRITLLM_ISA` (scalar, avx2, avxvnni, avx512vnni, avx512, amx, neon) forces an instruction set; amx
is of the packed products alone, the codec then takes avx512. Where the library cannot be loaded,
importing this package still works: `available()` is False and `load_error()` says why.
"""

from tritllm.native.instruction_sets import Family, describe_isa, isa, isas
from tritllm.native.library import available, load_error

__all__ = ["Family", "available", "describe_isa", "isa", "isas", "load_error"]
