"""Products y = x W^T (+ bias) on packed weights, for NumPy arrays and raw pointers.

    weight = prepare(tensor)                  # once, at load
    y = linear(weight, x, bias, threads=2)

`available()` is False and `load_error()` says why where the native library or these functions are
missing; `kernels.reference` is the same arithmetic in NumPy. `TRITLLM_ISA` forces an instruction
set.
"""

from tritllm.products.library import available, isa, isas, load_error
from tritllm.products.linear import (
    linear,
    linear_many,
    linear_pointers,
    product_array,
    scratch_size,
)
from tritllm.products.prepared import Prepared, attach, prepare, prepare_pointers, size

__all__ = [
    "Prepared",
    "attach",
    "available",
    "isa",
    "isas",
    "linear",
    "linear_many",
    "linear_pointers",
    "load_error",
    "prepare",
    "prepare_pointers",
    "product_array",
    "scratch_size",
    "size",
]
