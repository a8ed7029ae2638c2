"""Memory that the Triton kernels read: W in the order in which they want it, on any device.

Notation: W is [N, K], G = ceil(K / 16), B = ceil(N / 16) blocks of 16 rows. Of each group of 16
weights, weight i has the code level + L, L = (3**d - 1) / 2; and the group has its entry e of 27,
plus 27 times the number of the part of W that its row is in. What is missing at the ends of W has
level 0 and entry 0. With q = i // 4 and j = i % 4, a group is

    depth 1: 32 bits, code i at bit 2i;
    depth 2: two words of 32 bits, code i in word i // 8 at bit 8j + 4 (q % 2);
    depth 3: as depth 2 with the low four bits of each code; 16 bits, bit 4 of code i at bit
             8 (j % 2) + 4 (j // 2) + q;
    depth 4: as depth 2 with the low four bits; 32 bits, bits 4 and 5 of code i at bit 8j + 2q;
             16 bits as at depth 3, bit 6 of the codes;
    each depth: 8 bits, the entry;

so 2.5, 4.5, 5.5 and 7.5 bits a weight. The memory is an array of each of these, in this order, each
[B, G, 16 rows], little-endian. A thread takes four rows in one load, eight threads a whole line of
the cache, and no thread needs a byte of another's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tritllm.format.layout import groups_of
from tritllm.format.trits import ENTRIES, GROUP, max_level
from tritllm.ops.check_packed_bytes import PACKED, check_packed_bytes
from tritllm.ops.definitions import Packed, check_packed
from tritllm.ops.portable import BLOCK_WEIGHTS, entries, levels

LAYOUT = 1 << 20  # its number; the CPU's are the instruction sets' small ones
ROWS = 16  # of a block
MOST_PARTS = 256 // ENTRIES  # what a byte's entries have room for

_I = range(GROUP)
_LOW = [8 * (i % 4) + 4 * (i // 4 % 2) for i in range(8)]
_MIDDLE = [8 * (i % 4) + 2 * (i // 4) for i in _I]
_HIGH = [8 * (i % 4 % 2) + 4 * (i % 4 // 2) + i // 4 for i in _I]

# An array of the layout: its elements' type; the weights of a group it has bits of; the lowest of a
# code's bits that it has, and how many; where each weight's are.
Array = tuple[torch.dtype, slice, int, int, Sequence[int]]
_FIRST: Array = (torch.int32, slice(0, 8), 0, 4, _LOW)
_SECOND: Array = (torch.int32, slice(8, 16), 0, 4, _LOW)
ARRAYS: dict[int, tuple[Array, ...]] = {
    1: ((torch.int32, slice(0, 16), 0, 2, [2 * i for i in _I]),),
    2: (_FIRST, _SECOND),
    3: (_FIRST, _SECOND, (torch.int16, slice(0, 16), 4, 1, _HIGH)),
    4: (
        _FIRST,
        _SECOND,
        (torch.int32, slice(0, 16), 4, 2, _MIDDLE),
        (torch.int16, slice(0, 16), 6, 1, _HIGH),
    ),
}
GROUP_BYTES = {d: 1 + sum(a[0].itemsize for a in arrays) for d, arrays in ARRAYS.items()}


def size(out_features: int, in_features: int, depth: int) -> int:
    """Bytes of the memory of W [N, K]."""
    return blocks_of(out_features) * ROWS * groups_of(in_features) * GROUP_BYTES[depth]


def blocks_of(out_features: int) -> int:
    """B, the blocks of 16 rows."""
    return -(-out_features // ROWS)


def prepare(packed: Packed) -> torch.Tensor:
    """The memory, uint8 [size], on the tensors' device.

    Raises ValueError for bytes that are no trits, padding that is not zero, shapes that do not fit
    each other, and more than MOST_PARTS parts.
    """
    check_packed(packed)
    planes, scale, _, in_features, part_rows = packed
    depth, rows = planes.shape[:2]
    parts = part_rows or (rows,)
    if len(parts) > MOST_PARTS:
        raise ValueError(f"{len(parts)} parts are put together, at most {MOST_PARTS} fit")
    for name, tensor in zip(PACKED, (planes, scale), strict=False):
        try:
            check_packed_bytes(name, tensor, in_features)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    device = planes.device
    memory = torch.empty(size(rows, in_features, depth), dtype=torch.uint8, device=device)
    *arrays, entry_array = _views(memory, rows, in_features, depth)
    numbers = torch.arange(len(parts), device=device, dtype=torch.int32)
    part = numbers.repeat_interleave(torch.tensor(parts, device=device), output_size=rows)
    groups = groups_of(in_features)
    step = max(1, BLOCK_WEIGHTS // (ROWS * in_features))
    for begin in range(0, blocks_of(rows), step):
        blocks = slice(begin, min(begin + step, blocks_of(rows)))
        own = slice(blocks.start * ROWS, min(blocks.stop * ROWS, rows))
        code = _padded(
            levels(planes[:, own], in_features) + max_level(depth), blocks, groups * GROUP,
            max_level(depth),
        ).view(-1, ROWS, groups, GROUP)  # fmt: skip
        for array, (_, weights, low, count, places) in zip(arrays, ARRAYS[depth], strict=True):
            bits = (code[..., weights].long() >> low) & ((1 << count) - 1)
            field = (bits << torch.tensor(places, device=device)).sum(-1)
            array[blocks] = field.transpose(1, 2).to(array.dtype)
        entry = entries(scale[own], in_features) + ENTRIES * part[own, None]
        entry_array[blocks] = _padded(entry, blocks, groups, 0).view(-1, ROWS, groups).mT
    return memory


def read(memory: torch.Tensor, shape: tuple[int, int], depth: int) -> tuple[torch.Tensor, ...]:
    """What `prepare` wrote: levels int8 [N, K], and entries int32 [N, G] with their part's 27s.

    The definition that the kernels' reading is tested against.
    """
    rows, columns = shape
    *arrays, entry_array = _views(memory, rows, columns, depth)
    groups = groups_of(columns)
    code = torch.zeros((len(entry_array), ROWS, groups, GROUP), dtype=torch.int32)
    code = code.to(memory.device)
    for array, (_, weights, low, count, places) in zip(arrays, ARRAYS[depth], strict=True):
        field = array.transpose(1, 2).long()[..., None] >> torch.tensor(places).to(memory.device)
        code[..., weights] |= ((field & ((1 << count) - 1)) << low).int()
    level = (code - max_level(depth)).to(torch.int8).view(-1, groups * GROUP)
    return level[:rows, :columns], entry_array.mT.reshape(-1, groups)[:rows].int()


def _views(memory: torch.Tensor, rows: int, columns: int, depth: int) -> list[torch.Tensor]:
    """The memory's arrays, each [B, G, 16]: those of ARRAYS[depth], then the entries'."""
    blocks, groups = blocks_of(rows), groups_of(columns)
    views, at = [], 0
    for dtype in (*(array[0] for array in ARRAYS[depth]), torch.uint8):
        end = at + blocks * groups * ROWS * dtype.itemsize
        views.append(memory[at:end].view(dtype).view(blocks, groups, ROWS))
        at = end
    return views


def _padded(values: torch.Tensor, blocks: slice, width: int, fill: int) -> torch.Tensor:
    """Values [n, k] in the corner of [rows of the blocks, width] of `fill`."""
    whole = values.new_full(((blocks.stop - blocks.start) * ROWS, width), fill)
    whole[: values.shape[0], : values.shape[1]] = values
    return whole
