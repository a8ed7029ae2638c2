"""y = x W^T (+ bias) on prepared weights."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from tritllm.native.arrays import address, dtype_number, with_dense_rows
from tritllm.native.library import BAD_ARGUMENT, check
from tritllm.products import library
from tritllm.products.prepared import Prepared, aligned_bytes

FLOAT16, BFLOAT16, FLOAT32 = range(3)  # element types of `linear_pointers` and `product_array`


def linear(
    prepared: Prepared,
    x: np.ndarray,
    bias: np.ndarray | None = None,
    threads: int = 1,
    exact: bool = False,
) -> np.ndarray:
    """X [..., K] -> y [..., N] of x's dtype: float16, bfloat16 (ml_dtypes) or float32.

    bias: [N] of one of these dtypes. exact: float32 activations in place of int8. See
    `kernels.reference` for the arithmetic. Any number of threads gives the same result.

    Raises ValueError for shapes that do not fit, TypeError for another dtype, RuntimeError without
    the library.
    """
    return linear_many((prepared,), x, (bias,), threads, exact)[0]


def linear_many(
    prepared: Sequence[Prepared],
    x: np.ndarray,
    biases: Sequence[np.ndarray | None] | None = None,
    threads: int = 1,
    exact: bool = False,
) -> list[np.ndarray]:
    """Several products of one x, whose activations are then quantized once. As `linear`."""
    columns = prepared[0].shape[1]
    biases = [None] * len(prepared) if biases is None else biases
    dtype = dtype_number(x.dtype)
    for weight, bias in zip(prepared, biases, strict=True):
        if weight.shape[1] != columns:
            raise ValueError(f"weights of {columns} and {weight.shape[1]} columns share one x")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"bias has shape {bias.shape}, expected ({weight.shape[0]},)")
    if x.shape[-1:] != (columns,):
        raise ValueError(f"x has shape {x.shape}, expected [..., {columns}]")
    rows = with_dense_rows(x.reshape(-1, columns))
    batch = rows.shape[0]
    outputs = [np.empty((batch, weight.shape[0]), x.dtype) for weight in prepared]
    held = [None if bias is None else np.ascontiguousarray(bias) for bias in biases]
    products = product_array(
        [
            (
                weight.address,
                0 if bias is None else address(bias),
                FLOAT32 if bias is None else dtype_number(bias.dtype),
                address(y),
                weight.shape[0],
                dtype,
            )
            for weight, bias, y in zip(prepared, held, outputs, strict=True)
        ]
    )
    scratch = aligned_bytes(scratch_size(batch, columns, exact))
    stride = rows.strides[0] // rows.itemsize if batch > 1 else columns
    linear_pointers(
        products, address(rows), stride, batch, columns, dtype, address(scratch), threads, exact
    )
    return [y.reshape(*x.shape[:-1], y.shape[1]) for y in outputs]


def product_array(
    products: Sequence[tuple[int, int, int, int, int, int]],
) -> ctypes.Array[library.Product]:
    """Arguments of `linear_pointers`: for each product the addresses of prepared memory and of the
    bias (0: none), the bias's element type, the address of y, its row stride in elements, its type.

    An array may be kept and its `y` and `stride` fields changed from call to call.
    """
    return (library.Product * len(products))(
        *(
            library.Product(prepared, bias or None, y, stride, bias_dtype, dtype)
            for prepared, bias, bias_dtype, y, stride, dtype in products
        )
    )


@lru_cache(maxsize=4096)
def scratch_size(batch: int, columns: int, exact: bool = False) -> int:
    """Bytes of scratch memory, aligned to 64, that `linear_pointers` needs."""
    return library.library().tritllm_linear_activations_size(batch, columns, exact)


def linear_pointers(
    products: ctypes.Array[library.Product],
    x: int,
    stride: int,
    batch: int,
    columns: int,
    dtype: int,
    scratch: int,
    threads: int = 1,
    exact: bool = False,
) -> None:
    """Products that share x [batch, columns] at address `x`, rows `stride` elements apart.

    dtype: FLOAT16, BFLOAT16 or FLOAT32. scratch: `scratch_size` bytes at a multiple of 64. Nothing
    about the memory is checked but the headers of what is prepared.

    Raises ValueError where prepared memory, K or a type does not fit, RuntimeError for an
    instruction set that is not there.
    """
    call = library.Input(x, stride, batch, columns, dtype, exact)
    status = library.library().tritllm_linear_run(
        threads, ctypes.byref(call), scratch, products, len(products)
    )
    if status == BAD_ARGUMENT:
        raise ValueError("a product does not fit its input, or its memory is not prepared")
    check(status)
