"""Packed weights decoded by the native library, from the file's planes or prepared memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tritllm import native, products
from tritllm.codec import native_dequantize
from tritllm.native.structures import ALIGNMENT, Product
from tritllm.ops.backends import default
from tritllm.ops.definitions import DecodeArguments, Packed, check_packed
from tritllm.ops.dtypes import NUMBER_OF_TORCH, NUMPY_OF_TORCH


def dequantize(
    planes: torch.Tensor,
    scale: torch.Tensor,
    steps: torch.Tensor,
    in_features: int,
    dtype: torch.dtype,
    part_rows: Sequence[int] | None = None,
) -> torch.Tensor:
    """The portable arrays decoded by the codec's native library, some fifty times torch's speed.

    What the library refuses (bytes that are no trits, steps that are not finite) torch decodes, as
    the operator's definition says.
    """
    arguments = (planes, scale, steps, in_features, dtype, part_rows)
    check_packed(Packed(planes, scale, steps, in_features, part_rows))
    if not native.available():
        return default.dequantize(*arguments)
    exact = dtype if dtype in NUMPY_OF_TORCH else torch.float32
    out = torch.empty((planes.shape[1], in_features), dtype=exact)
    array = out.view(torch.uint8).numpy().view(NUMPY_OF_TORCH[exact])
    packed, index = planes.numpy(), scale.numpy()
    parts = part_rows or (planes.shape[1],)
    begin = 0
    for own, n in zip(steps.detach().numpy().reshape(len(parts), -1), parts, strict=True):
        rows = slice(begin, begin + n)
        try:
            native_dequantize.dequantize_rows(
                packed[:, rows], index[rows], own, in_features, planes.shape[0], array[rows],
                torch.get_num_threads(),
            )  # fmt: skip
        except ValueError:
            return default.dequantize(*arguments)
        begin += n
    return out.to(dtype)


def dequantize_prepared(*arguments: Any) -> torch.Tensor:
    """On torch's number of threads. The memory's header is held against the arguments."""
    call = DecodeArguments(*arguments)
    call.check()
    exact = call.dtype if call.dtype in NUMBER_OF_TORCH else torch.float32
    out = torch.empty((call.end - call.begin, call.in_features), dtype=exact)
    steps = call.steps.contiguous()
    weights = Product(
        prepared=prepared_address(call.prepared), size=call.prepared.numel(),
        rows=call.out_features, layout=call.layout, depth=call.depth, steps=steps.data_ptr(),
        y=out.data_ptr(), stride=call.in_features, dtype=NUMBER_OF_TORCH[exact],
    )  # fmt: skip
    threads = torch.get_num_threads()
    products.decode_pointers(weights, call.in_features, call.begin, call.end, threads)
    return out.to(call.dtype)


def prepared_address(prepared: torch.Tensor) -> int:
    """Of prepared memory. Raises ValueError where the library could not read it there."""
    address = prepared.data_ptr()
    if not prepared.is_contiguous() or not address or address % ALIGNMENT:
        raise ValueError(f"prepared memory is not contiguous and aligned to {ALIGNMENT} bytes")
    return address
