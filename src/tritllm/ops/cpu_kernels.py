"""The native CPU kernels on torch tensors; absent kernels are not an error.

The environment variable TRITLLM_LINEAR chooses what computes packed layers on a CPU:

* `int8` (the default): native kernels, activations rounded to int8 in groups of 16;
* `exact`: native kernels, float32 activations, slower;
* `torch`: no native kernels; also what happens where they cannot be loaded.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from functools import cache
from typing import Any

import torch

from tritllm import native
from tritllm import products as kernels
from tritllm.errors import TritError
from tritllm.native import threads
from tritllm.native.library import check
from tritllm.native.structures import BAD_ARGUMENT, Input, Product

MODES = ("int8", "exact", "torch")
DTYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}  # the kernels' numbers
_SCRATCH_KEPT = 1 << 23  # bytes a thread keeps between calls
_PAGE_OUT = 21  # MADV_PAGEOUT of Linux: pages of a file are dropped, others stay


class _Scratch(threading.local):
    """A thread's memory for quantized activations."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)


_scratch = _Scratch()


@cache
def mode() -> str:
    """`TRITLLM_LINEAR`, read once. Raises TritError for a value that is none."""
    value = os.environ.get("TRITLLM_LINEAR") or MODES[0]
    if value not in MODES:
        raise TritError(f"TRITLLM_LINEAR={value} is not one of {', '.join(MODES)}")
    return value


def available() -> bool:
    """Whether native kernels are wanted and can run here."""
    return mode() != "torch" and native.available()


def as_wanted() -> bool:
    """Whether what `TRITLLM_LINEAR` asks for can run here."""
    return mode() == "torch" or native.available()


def describe() -> str:
    """What computes packed layers on the CPU, and why, in a line.

    Raises TritError where an environment variable asks for what cannot be.
    """
    if available():
        activations = "int8" if mode() == "int8" else "float32 (TRITLLM_LINEAR=exact)"
        isa = native.describe_isa("products")
        return f"native kernels, {isa}, activations in {activations}"
    why = "TRITLLM_LINEAR=torch" if mode() == "torch" else native.load_error()
    return f"torch, which decodes the weights at every call: {why}"


def prepare(
    planes: torch.Tensor, scale: torch.Tensor, steps: torch.Tensor, in_features: int
) -> torch.Tensor:
    """Prepared memory uint8 [bytes] of portable planes [r, N, ceil(K/5)], scale and steps [27].

    Raises ValueError for bytes that are no trits, RuntimeError where the kernels are not there.
    """
    threads.use_openmp()
    planes, scale, steps = planes.contiguous(), scale.contiguous(), steps.contiguous()
    depth, rows = planes.shape[:2]
    memory = torch.empty(kernels.size(rows, in_features, depth), dtype=torch.uint8)
    kernels.prepare_pointers(
        planes.data_ptr(),
        planes.stride(0),
        scale.data_ptr(),
        steps.data_ptr(),
        (rows, in_features),
        depth,
        memory.data_ptr(),
        torch.get_num_threads(),
    )
    return memory


def linear(
    x: torch.Tensor, prepared: torch.Tensor, out_features: int, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Multiply x [..., K] by prepared W [N, K], add bias [N] -> [..., N] of x's dtype.

    Runs on torch's number of threads. Written for few instructions: at batch 1 a model calls it
    some two hundred times a token.

    Raises ValueError where shapes do not fit, TypeError for another dtype than float32, bfloat16
    and float16, RuntimeError where the kernels are not there.
    """
    dtype = DTYPES.get(x.dtype)
    if dtype is None:
        raise TypeError(f"x is {x.dtype}, not float32, bfloat16 or float16")
    x = x.contiguous()
    shape = list(x.shape)
    columns = shape[-1]
    batch = x.numel() // columns
    shape[-1] = out_features
    y = x.new_empty(shape)
    address = prepared.data_ptr()
    at, bias_dtype = (None, dtype) if bias is None else (bias.data_ptr(), DTYPES[bias.dtype])
    product = Product(
        address, prepared.numel(), out_features, 0, 0, None, at, y.data_ptr(), out_features,
        bias_dtype, dtype,
    )  # fmt: skip
    exact = mode() == "exact"
    scratch = scratch_memory(kernels.scratch_size(batch, columns, exact))
    call = Input(x.data_ptr(), columns, batch, columns, dtype, exact)
    status = kernels.run_function()(torch.get_num_threads(), call, scratch.data_ptr(), product, 1)
    if status:
        if status == BAD_ARGUMENT:
            raise ValueError(
                f"the memory was not prepared for {out_features} rows and {columns} features"
            )
        check(status)
    return y


def scratch_memory(nbytes: int) -> torch.Tensor:
    """Memory of this thread until its next call; a large piece is not kept for another."""
    memory = _scratch.memory
    if nbytes > memory.numel():
        memory = torch.empty(nbytes, dtype=torch.uint8)
        if nbytes <= _SCRATCH_KEPT:
            _scratch.memory = memory
    return memory


def release_pages(tensor: torch.Tensor) -> None:
    """Tell Linux it may take back the pages of a tensor that is mapped from a file.

    They are read again from the file if they are ever needed; memory of other kinds, and other
    systems, are left alone.
    """
    advise = _madvise()
    page = os.sysconf("SC_PAGE_SIZE") if advise else 1
    start = -(-tensor.data_ptr() // page) * page
    length = (tensor.data_ptr() + tensor.nbytes) // page * page - start
    if advise and length > 0:
        advise(start, length, _PAGE_OUT)


@cache
def _madvise() -> Any:
    """The system's function; None where it does not know this advice."""
    if sys.platform != "linux":
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
