"""y = x W^T (+ bias) on prepared weights."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np

from tritllm.native.arrays import address, aligned_bytes, dtype_number, with_dense_rows
from tritllm.native.instruction_sets import isa_number
from tritllm.native.library import library
from tritllm.native.structures import GROUPS, Input, Product
from tritllm.products.prepared import Prepared, check_memory


def linear(
    prepared: Prepared,
    x: np.ndarray,
    bias: np.ndarray | None = None,
    threads: int = 1,
    arithmetic: int = GROUPS,
    planes: int | None = None,
) -> np.ndarray:
    """X [..., K] -> y [..., N] of x's dtype: float16, bfloat16 (ml_dtypes) or float32.

    bias: [N] of one of these dtypes. arithmetic: GROUPS, EXACT (float32 activations in place of
    int8), SUPERBLOCKS (for many rows) or PER_TOKEN (one scale a row); see `products.reference`.
    planes: read only so many of the top planes. Any number of threads gives the same result.

    Raises ValueError for shapes that do not fit, planes outside 1..depth and memory that is not
    prepared, TypeError for another dtype, RuntimeError without the library.
    """
    n, columns = prepared.shape
    if bias is not None and bias.shape != (n,):
        raise ValueError(f"bias has shape {bias.shape}, expected ({n},)")
    if x.shape[-1:] != (columns,):
        raise ValueError(f"x has shape {x.shape}, expected [..., {columns}]")
    rows = with_dense_rows(x.reshape(-1, columns))
    batch = rows.shape[0]
    stride = rows.strides[0] // rows.itemsize if batch > 1 else columns
    held = None if bias is None else np.ascontiguousarray(bias)
    y = np.empty((batch, n), x.dtype)
    product = prepared.product(y, planes)
    if held is not None:
        product.bias, product.bias_dtype = address(held), dtype_number(held.dtype)
    scratch = aligned_bytes(scratch_size(batch, columns, arithmetic))
    call = Input(address(rows), stride, batch, columns, product.dtype, arithmetic)
    status = run_function()(threads, call, address(scratch), product, 1)
    check_memory(status, product, columns)
    return y.reshape(*x.shape[:-1], n)


@lru_cache(maxsize=4096)
def scratch_size(batch: int, columns: int, arithmetic: int = GROUPS) -> int:
    """Bytes of scratch memory, aligned to 64, that `run_function` needs."""
    return library().tritllm_linear_activations_size(batch, columns, arithmetic)


def superblock_rows(isa: str | None = None) -> int:
    """From how many batch rows on SUPERBLOCKS is faster than GROUPS here; 0: never.

    Raises RuntimeError without the library.
    """
    return library().tritllm_linear_superblock_rows(isa_number(isa, "products"))


@cache
def run_function() -> Callable[[int, Input, int, Product | ctypes.Array[Product], int], int]:
    """Products that share one input, by address: tritllm_linear_run, with few instructions a call.

    The function takes the number of threads, the input, the address of scratch memory
    (`scratch_size` bytes, aligned to 64), one `native.structures.Product` or an array of them, and
    their number. It returns a status: OK, BAD_ARGUMENT where a product's prepared memory is not
    what its fields say or does not fit the input, UNSUPPORTED where it was prepared for an
    instruction set that cannot run here. A product's `size`, `rows`, `layout` and `depth` are
    compared with the memory before it is read; all other addresses are the caller's to get right.

    A matrix put together along its rows is several products of one call, one a part, each with its
    own prepared memory and its part of y (`y` moved by the rows before it, `stride` of the whole).

    Raises RuntimeError without the library.
    """
    entry = ctypes.cast(library().tritllm_linear_run, ctypes.c_void_p).value
    assert entry is not None
    by_reference, result = ctypes.POINTER, ctypes.c_int
    return ctypes.CFUNCTYPE(
        result,
        ctypes.c_int,
        by_reference(Input),
        ctypes.c_void_p,
        by_reference(Product),
        ctypes.c_int,
    )(entry)
