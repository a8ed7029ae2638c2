"""The native CPU kernels on torch tensors; absent kernels are not an error.

Prepared memory begins with a header that names its instruction set, which the native library holds
against the arguments. Memory of several parts is that of each part, one behind the other: every
size is a multiple of 64 bytes.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from functools import cache

import torch

from tritllm import native, products
from tritllm.format.trits import DEPTHS, ENTRIES
from tritllm.native.structures import Input, Portable, Product
from tritllm.native.threads import use_openmp
from tritllm.ops import mode
from tritllm.ops.backends.backend import Backend, Prepared
from tritllm.ops.backends.cpu_decoding import (
    dequantize,
    dequantize_prepared,
    prepared_address,
)
from tritllm.ops.definitions import Packed, PreparedArguments, check_packed, check_steps
from tritllm.ops.dtypes import NUMBER_OF_TORCH

_SCRATCH_KEPT = 1 << 23  # bytes a thread keeps between calls
_STEP_BYTES = 4 * ENTRIES
_ARITHMETIC = tuple(mode.ARITHMETIC.values())


def runs_as_requested() -> bool:
    """Whether what `TRITLLM_LINEAR` asks for can run here."""
    return mode.requested() == "torch" or native.available()


def describe() -> str:
    """What computes packed layers on the CPU, and why, in a line.

    Raises TritError where an environment variable asks for what cannot be.
    """
    asked = mode.requested()
    if asked != "torch" and native.available():
        activations = {
            "int8": "int8",
            "exact": "float32 (TRITLLM_LINEAR=exact)",
            mode.PER_TOKEN: f"int8, a scale for each token (TRITLLM_LINEAR={mode.PER_TOKEN})",
        }[asked]
        return f"native kernels, {native.describe_isa('products')}, activations in {activations}"
    why = "TRITLLM_LINEAR=torch" if asked == "torch" else native.load_error()
    return f"torch, which decodes the weights at every call: {why}"


# --- Preparing ------------------------------------------------------------------------------------


def _prepare(packed: Packed, planes_apart: bool) -> Prepared:
    check_packed(packed)
    planes, scale, steps, in_features, part_rows = packed
    use_openmp()
    depth, rows = planes.shape[:2]
    parts = list(part_rows or (rows,))
    steps = steps.contiguous().view(len(parts), -1)
    scale = scale.contiguous()
    if planes.stride()[1:] != (planes.shape[2], 1):  # the planes themselves may lie apart
        planes = planes.contiguous()
    calls, sizes, begin = [], [], 0
    for own, n in zip(steps, parts, strict=True):
        call = Portable(
            planes.data_ptr() + begin * planes.shape[2], planes.stride(0),
            scale.data_ptr() + begin * scale.shape[1], own.data_ptr(), n, in_features, depth,
        )  # fmt: skip
        sizes.append(products.look(call, planes_apart=planes_apart))
        calls.append(call)
        begin += n
    memory = torch.empty(sum(sizes), dtype=torch.uint8)
    at = memory.data_ptr()
    for call, nbytes in zip(calls, sizes, strict=True):
        products.prepare_pointers(call, at, torch.get_num_threads())
        at += nbytes
    return Prepared(memory, products.layout(), bool(calls[0].planes_together))


# --- Products -------------------------------------------------------------------------------------


def linear_prepared(
    x: torch.Tensor,
    prepared: torch.Tensor,
    steps: torch.Tensor,
    layout: int,
    depth: int,
    in_features: int,
    out_features: int,
    arithmetic: int,
    bias: torch.Tensor | None = None,
    part_rows: Sequence[int] | None = None,
    planes: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Runs on torch's number of threads.

    Written for few instructions: at batch 1 a model calls it some two hundred times a token. So
    what is checked is asked in its cheapest form, and only a call that fails says what it was.
    """
    dtype = NUMBER_OF_TORCH.get(x.dtype)
    shape = list(x.shape)
    if (
        dtype is None
        or not shape
        or shape[-1] != in_features
        or depth not in DEPTHS
        or not 0 < layout < 1 << 31  # 0 would mean any
        or arithmetic not in _ARITHMETIC
        or prepared.dtype is not torch.uint8
        or steps.dtype is not torch.float32
        or (part_rows is None and steps.numel() != ENTRIES)
        or (
            bias is not None
            and (bias.shape != (out_features,) or bias.dtype not in NUMBER_OF_TORCH)
        )
    ):
        return _refuse_or_cast(
            PreparedArguments(
                x, prepared, steps, layout, depth, in_features, out_features, arithmetic, bias
            )._replace(part_rows=part_rows)
        )
    address = prepared_address(prepared)
    x = x.contiguous()
    steps = steps.contiguous()
    batch = x.numel() // in_features
    shape[-1] = out_features
    y = x.new_empty(shape)
    bias_at, bias_dtype = None, dtype
    if bias is not None:
        bias = bias.contiguous()
        bias_at, bias_dtype = bias.data_ptr(), NUMBER_OF_TORCH[bias.dtype]
    whole = product = Product(
        address, prepared.numel(), out_features, layout, depth, steps.data_ptr(), bias_at,
        y.data_ptr(), out_features, bias_dtype, dtype,
    )  # fmt: skip
    count = 1
    if part_rows is not None:
        check_steps(steps, part_rows, out_features)
        element = 0 if bias is None else bias.element_size()
        product = _parts(whole, part_rows, y.element_size(), element)
        count = len(part_rows)
    if arithmetic == products.GROUPS and batch >= superblock_rows():
        arithmetic = products.SUPERBLOCKS
    call = Input(x.data_ptr(), in_features, batch, in_features, dtype, arithmetic)
    scratch = scratch_memory(products.scratch_size(batch, in_features, arithmetic))
    status = products.run_function()(
        torch.get_num_threads(), call, scratch.data_ptr(), product, count
    )
    if status:
        products.check_memory(status, whole, in_features)
    return y


def _parts(whole: Product, part_rows: Sequence[int], y_element: int, bias_element: int) -> Product:
    """One product a part: its memory, its columns of y and of the bias; the first of an array.

    They share x, which is quantized once.
    """
    found = (Product * len(part_rows))()
    row = at = 0
    for part, (own, rows) in enumerate(zip(found, part_rows, strict=True)):
        own.prepared, own.size, own.rows = whole.prepared + at, whole.size - at, rows
        own.layout, own.depth = whole.layout, whole.depth
        own.steps = whole.steps + part * _STEP_BYTES
        own.bias = None if whole.bias is None else whole.bias + row * bias_element
        own.y, own.stride = whole.y + row * y_element, whole.stride
        own.bias_dtype, own.dtype = whole.bias_dtype, whole.dtype
        row, at = row + rows, at + products.size_of_memory(own.prepared, own.size)
    return found[0]


def _refuse_or_cast(call: PreparedArguments) -> torch.Tensor:
    """float64 is computed in float32 and cast back; anything else is refused."""
    call.check()
    x, bias = call.x, call.bias
    narrow = call._replace(
        x=x.float() if x.dtype is torch.float64 else x,
        bias=bias.float() if bias is not None and bias.dtype is torch.float64 else bias,
    )
    return linear_prepared(*narrow).to(x.dtype)


@cache
def superblock_rows() -> int:
    """From how many rows on activations and weights share scales by superblocks."""
    asked = mode.prefill()
    if asked == "auto":
        return products.superblock_rows() or sys.maxsize
    return 1 if asked == "superblocks" else sys.maxsize


class _Scratch(threading.local):
    """A thread's memory for quantized activations."""

    def __init__(self) -> None:
        self.memory = torch.empty(0, dtype=torch.uint8)


_scratch = _Scratch()


def scratch_memory(nbytes: int) -> torch.Tensor:
    """Memory of this thread until its next call; a large piece is not kept for another."""
    memory = _scratch.memory
    if nbytes > memory.numel():
        memory = torch.empty(nbytes, dtype=torch.uint8)
        if nbytes <= _SCRATCH_KEPT:
            _scratch.memory = memory
    return memory


BACKEND = Backend(
    "CPU",
    {
        "dequantize": dequantize,
        "dequantize_prepared": dequantize_prepared,
        "linear_prepared": linear_prepared,
    },
    "cpu",
    _prepare,
    describe,
    native.available,
)
