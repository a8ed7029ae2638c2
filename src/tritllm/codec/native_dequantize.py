"""Dequantizing packed rows by the native library, without the levels in between."""

from __future__ import annotations

import ctypes
from functools import partial

import numpy as np

from tritllm.format import trits
from tritllm.format.layout import groups_of, plane_row_bytes, scale_row_bytes
from tritllm.format.trits import ENTRIES
from tritllm.native import threads as pool
from tritllm.native.arrays import address, dtype_number, with_dense_rows
from tritllm.native.instruction_sets import isa_number
from tritllm.native.library import check, library
from tritllm.native.structures import BAD_BYTE, BAD_PADDING, Packed


def dequantize_rows(
    packed: np.ndarray,
    scale: np.ndarray,
    steps: np.ndarray,
    columns: int,
    planes: int,
    out: np.ndarray,
    threads: int = 1,
    *,
    isa: str | None = None,
) -> None:
    """Write the weights of packed rows to `out`, each rounded once from float32, half to even.

    packed: uint8 [d, n, ceil(K/5)], of which the first `planes` planes are read; scale: uint8
    [n, ceil(3G/5)]; steps: float32 [27], those that apply at `planes` planes; columns: K;
    out: [n, K] float16, bfloat16 or float32, with contiguous rows.

    Raises ValueError for a byte above 242, for padding that is not zero (as the reference's
    `unpack_trits`; `out` is then unspecified), for steps that are not finite and for shapes that do
    not belong together; TypeError for another dtype; RuntimeError without the library.
    """
    rows = packed.shape[1]
    _expect("packed", packed, np.uint8, (packed.shape[0], rows, plane_row_bytes(columns)))
    _expect("scale", scale, np.uint8, (rows, scale_row_bytes(columns)))
    _expect("steps", steps, np.float32, (ENTRIES,))
    _expect("out", out, None, (rows, columns))
    if not 1 <= planes <= min(4, packed.shape[0]):
        raise ValueError(f"{planes} planes of {packed.shape[0]}")
    if not np.isfinite(steps).all():
        raise ValueError("a step is not a finite number")
    if with_dense_rows(out) is not out or not out.flags.writeable:
        raise ValueError("out is read-only or its rows are not contiguous")

    number, native = isa_number(isa, "codec"), library()
    weight, index = with_dense_rows(packed), with_dense_rows(scale)
    steps = np.ascontiguousarray(steps)
    call = Packed(
        address(weight),
        weight.strides[0],
        weight.strides[1],
        address(index),
        index.strides[0],
        address(steps),
        columns,
        planes,
        dtype_number(out.dtype),
        address(out),
        out.strides[0] // out.itemsize,
    )
    statuses: list[int] = []

    def part(begin: int, end: int) -> None:
        statuses.append(native.tritllm_dequantize(number, ctypes.byref(call), begin, end))

    if rows and columns:
        ranges = pool.parts(rows, 1, threads)
        pool.run([partial(part, *rows) for rows in ranges], threads)
    if BAD_BYTE in statuses or BAD_PADDING in statuses:
        trits.unpack_trits(packed[:planes], columns)
        trits.unpack_scale_index(scale, groups_of(columns))
    for status in statuses:
        check(status)


def _expect(name: str, array: np.ndarray, dtype: type | None, shape: tuple[int, ...]) -> None:
    if dtype is not None and array.dtype != dtype:
        raise TypeError(f"{name} is {array.dtype}, not {np.dtype(dtype)}")
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
