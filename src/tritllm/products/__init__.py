"""Products y = x W^T (+ bias) on packed weights.

    weight = prepare(tensor)                  # once, at load
    y = linear(weight, x, bias, threads=2)

These take NumPy arrays; `prepare_pointers` and `run_function` take addresses, for callers with
arrays of another kind. All need the native library (`tritllm.native.available()`);
`products.reference` is the same arithmetic in NumPy. `TRITLLM_ISA` forces an instruction set.
"""

from tritllm.native.structures import EXACT, GROUPS, PER_TOKEN, SUPERBLOCKS
from tritllm.products.linear import linear, run_function, scratch_size, superblock_rows
from tritllm.products.prepared import (
    Prepared,
    check_memory,
    decode,
    decode_pointers,
    layout,
    look,
    planes_together,
    prepare,
    prepare_pointers,
    size,
    size_of_memory,
)

__all__ = [
    "EXACT",
    "GROUPS",
    "PER_TOKEN",
    "SUPERBLOCKS",
    "Prepared",
    "check_memory",
    "decode",
    "decode_pointers",
    "layout",
    "linear",
    "look",
    "planes_together",
    "prepare",
    "prepare_pointers",
    "run_function",
    "scratch_size",
    "size",
    "size_of_memory",
    "superblock_rows",
]
