"""The codec in C++: the same bits as `tritllm.codec.reference`, at the memory's speed.

The library is plain C behind ctypes and lies beside this file; `TRITLLM_LIBRARY` names another one.
`TRITLLM_ISA` (scalar, avx2, avx512, neon, amx) forces an instruction set; amx is of the packed
products alone, the codec then takes avx512. Where the library cannot be loaded, importing this
package still works: `available()` is False and `load_error()` says why.
"""

from tritllm.native.decoder import decode_rows
from tritllm.native.encoder import encode
from tritllm.native.library import available, describe_isa, isa, isas, load_error
from tritllm.native.trits import (
    pack_scale_index,
    pack_trits,
    unpack_scale_index,
    unpack_trits,
)

__all__ = [
    "available",
    "decode_rows",
    "describe_isa",
    "encode",
    "isa",
    "isas",
    "load_error",
    "pack_scale_index",
    "pack_trits",
    "unpack_scale_index",
    "unpack_trits",
]
