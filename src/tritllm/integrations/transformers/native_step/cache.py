"""A cache with memory allocated ahead, so that a new token copies no keys and values."""

from __future__ import annotations

import ctypes
from weakref import WeakKeyDictionary

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from tritllm.integrations.transformers.int8_cache import Int8Cache, Int8Room
from tritllm.integrations.transformers.native_step.lazy_layer import (
    LAZY,
    LazyLayer,
    Room,
    become_lazy,
)
from tritllm.ops.backends.cpu import scratch_memory
from tritllm.step import native_step as block_step

_LEAST_ROOM = 64  # tokens
_PROMPT_ROWS = 768  # of all sequences at a time: memory stays bounded; products take 256 of them
_CAPACITY_MULTIPLE = 16  # tokens
CACHES = (DynamicCache, Int8Cache)  # whose memory the native step can use


class PreallocatedCache:
    """The keys and values of a cache, with room for tokens to come.

    transformers' layer copies all keys and values for every token; here the layer's tensors are
    views of the part that is filled, made when someone looks (`LazyLayer`), and the next tokens are
    written behind it. Whoever replaces them, by whatever the cache offers, is noticed
    (`belongs_to`), and what they put there is copied.
    """

    def __init__(self, rooms: list[Room] | list[Int8Room], dtype: torch.dtype) -> None:
        """rooms: of the cache's layers, of as many tokens. dtype: of the model's activations."""
        self._rooms, self._dtype = rooms, dtype
        keys = rooms[0].keys
        self._batch, self.tokens = keys.shape[0], rooms[0].tokens
        self.capacity = min(room.keys.shape[2] for room in rooms)
        pointers = ctypes.c_void_p * len(rooms)
        self._keys = pointers(*(room.keys.data_ptr() for room in rooms))
        self._values = pointers(*(room.values.data_ptr() for room in rooms))
        self._scales = [
            pointers(*(scale.data_ptr() for scale in scales))
            for scales in zip(*(_scales_of(room) for room in rooms), strict=True)
        ]
        # What is the same in each call; made once, for a structure costs more than its changes.
        self._call = block_step.Step(
            batch=self._batch,
            key=ctypes.addressof(self._keys),
            value=ctypes.addressof(self._values),
            key_stride=keys.stride()[:3],
        )
        if self._scales:
            self._call.key_scale, self._call.value_scale = map(ctypes.addressof, self._scales)
        self._scratch: dict[tuple[int, int], int] = {}  # bytes, by new tokens and arithmetic

    def belongs_to(self, past: DynamicCache, new: int) -> bool:
        """Whether the cache's layers are in this memory, and there is room for `new` tokens.

        Tokens that were taken off every layer are gone here, too.
        """
        rooms = self._rooms
        if len(past.layers) != len(rooms):
            return False
        self.tokens = rooms[0].tokens
        for layer, room in zip(past.layers, rooms, strict=True):
            if layer.__dict__.get("room") is not room or room.tokens != self.tokens:
                return False
        return self.tokens + new <= self.capacity

    def accepts(self, hidden: torch.Tensor) -> bool:
        """Whether hidden states [B, T, H] are of the cache's batch and dtype, on the CPU."""
        return bool(
            hidden.shape[0] == self._batch
            and hidden.dtype is self._dtype
            and hidden.device.type == "cpu"
        )

    def step(
        self,
        blocks: ctypes.Array[block_step.Block],
        final_norm: tuple[block_step.Vector, float],
        hidden: torch.Tensor,
        rotary: list[tuple[torch.Tensor, torch.Tensor]],
        mask: torch.Tensor | None,
    ) -> None:
        """Run the blocks and the final norm on hidden [B, T, H], in place.

        The cache that this memory belongs to holds T tokens more afterwards.

        Args:
            blocks: the model's, in its order.
            final_norm: weight and epsilon.
            hidden: contiguous embeddings of the new tokens, of the cache's dtype.
            rotary: one or two tables of cosines and sines [1 or B, T, R] of hidden's dtype.
            mask: [B, all tokens], nonzero for one that is seen, by itself and those after it; None
                if all are.
        """
        batch, new = hidden.shape[:2]
        tokens, seen = self.tokens + new, None
        if mask is not None:
            seen = mask.ne(0).contiguous()
        key = new, blocks[0].arithmetic
        size = self._scratch.get(key)
        if size is None:
            size = block_step.scratch_size(blocks, batch, new, self.capacity)
            self._scratch[key] = size
        scratch = scratch_memory(size)
        cos, call = rotary[0][0], self._call
        call.new_tokens, call.tokens, call.hidden = new, tokens, hidden.data_ptr()
        for i, table in enumerate(rotary):
            call.cos[i], call.sin[i] = table[0].data_ptr(), table[1].data_ptr()
        call.rotary_stride = cos.stride(0) if cos.shape[0] > 1 else 0
        call.mask, call.mask_stride = None if seen is None else seen.data_ptr(), tokens
        call.final_norm, call.final_epsilon = final_norm
        block_step.llama_step(torch.get_num_threads(), blocks, call, scratch.data_ptr())
        for room in self._rooms:
            room.tokens = tokens

    def prompt(
        self,
        blocks: ctypes.Array[block_step.Block],
        final_norm: tuple[block_step.Vector, float],
        hidden: torch.Tensor,
        rotary: list[tuple[torch.Tensor, torch.Tensor]],
        mask: torch.Tensor | None,
    ) -> None:
        """As `step`, for any number of new tokens: some after the others, of about equal number."""
        batch, new = hidden.shape[:2]
        together = -(-new // -(-batch * new // _PROMPT_ROWS))
        for begin in range(0, new, together):
            count = min(together, new - begin)
            part = hidden.narrow(1, begin, count)
            run = part.contiguous()
            tables = [
                (cos.narrow(1, begin, count), sin.narrow(1, begin, count)) for cos, sin in rotary
            ]
            seen = None if mask is None else mask[:, : self.tokens + count]
            self.step(blocks, final_norm, run, tables, seen)
            self.tokens += count
            if run is not part:
                part.copy_(run)


_preallocated: WeakKeyDictionary[DynamicCache, PreallocatedCache] = WeakKeyDictionary()


def preallocated(
    past: DynamicCache,
    blocks: ctypes.Array[block_step.Block],
    dtype: torch.dtype,
    batch: int,
    new: int,
) -> PreallocatedCache | None:
    """The memory of a cache, with room for `new` tokens of `batch` sequences, made if need be.

    None for a cache with other layers, and for an empty one that is not to get a prompt.
    """
    memory = _preallocated.get(past)
    if memory is not None and memory.belongs_to(past, new):
        return memory
    if past.offloading:
        return None
    rooms: list[Room] | list[Int8Room] | None
    if new > block_step.STEP_TOKENS and not past.get_seq_length():
        rooms = _new_rooms(past, blocks, dtype, batch, new)
    elif len(past.layers) != len(blocks):
        return None
    elif type(past) is Int8Cache:
        rooms = _int8_rooms(past, dtype, new)
    else:
        rooms = _growing_rooms(past, blocks, dtype, new)
    if rooms is None:
        return None
    memory = _preallocated[past] = PreallocatedCache(rooms, dtype)
    return memory


def _capacity(tokens: int, new: int) -> int:
    """Tokens for which there is to be room when `new` come behind others."""
    wanted = tokens + new + max(_LEAST_ROOM, (tokens + new) // 4)
    return -(-wanted // _CAPACITY_MULTIPLE) * _CAPACITY_MULTIPLE


def _new_rooms(
    past: DynamicCache,
    blocks: ctypes.Array[block_step.Block],
    dtype: torch.dtype,
    batch: int,
    new: int,
) -> list[Room] | None:
    """Memory for a prompt, in the layers of a cache that has seen none."""
    if not past.layers and past.layer_class_to_replicate is DynamicLayer:
        past.layers.extend(DynamicLayer() for _ in blocks)
    if len(past.layers) != len(blocks):
        return None
    for layer, block in zip(past.layers, blocks, strict=True):
        if not _is_growing(layer, block.window) or layer.is_initialized:
            return None
    rooms = []
    for layer, block in zip(past.layers, blocks, strict=True):
        shape = (2, batch, block.kv_heads, _capacity(0, new), block.head_dim)
        memory = torch.empty(shape, dtype=dtype)
        layer.lazy_initialization(memory[0, :, :, :0], memory[1, :, :, :0])
        rooms.append(Room(memory[0], memory[1], 0, 0))
        become_lazy(layer, rooms[-1])
    return rooms


def _growing_rooms(
    past: DynamicCache, blocks: ctypes.Array[block_step.Block], dtype: torch.dtype, new: int
) -> list[Room] | None:
    """Memory with room for more, into which the layers' tensors are copied."""
    first = past.layers[0]
    tokens = first.get_seq_length()
    for layer, block in zip(past.layers, blocks, strict=True):
        if not _is_growing(layer, block.window) or not layer.is_initialized:
            return None
        batch, heads, held, width = layer.keys.shape
        if not layer.keys.numel() or layer.get_seq_length() != tokens or held > tokens:
            return None
        if held < tokens and held < block.window - 1:
            return None
        if first.keys.shape != (batch, heads, first.keys.shape[2], width):
            return None
        if layer.values.shape != layer.keys.shape:
            return None
        for x in (layer.keys, layer.values):
            if type(x) is not torch.Tensor or x.dtype is not dtype or x.device.type != "cpu":
                return None
    batch, heads, _, width = first.keys.shape
    capacity = _capacity(tokens, new)
    rooms = []
    for layer in past.layers:  # one at a time, so that the old memory can go
        memory = layer.keys.new_empty((2, batch, heads, capacity, width))
        start = tokens - layer.keys.shape[2]  # what is before takes no memory
        memory[0, :, :, start:tokens] = layer.keys
        memory[1, :, :, start:tokens] = layer.values
        rooms.append(Room(memory[0], memory[1], start, tokens))
        become_lazy(layer, rooms[-1])
    return rooms


def _int8_rooms(past: Int8Cache, dtype: torch.dtype, new: int) -> list[Int8Room] | None:
    """The layers' own memory, enlarged for `new` tokens."""
    first = past.layers[0].room
    for layer in past.layers:
        room = layer.room
        if first is None or room is None or not room.tokens or layer.dtype is not dtype:
            return None
        if room.tokens != first.tokens or room.keys.device.type != "cpu":
            return None
        if any(room.keys.shape[i] != first.keys.shape[i] for i in (0, 1, 3)):
            return None
    rooms = [layer.with_room(layer.room.keys, new) for layer in past.layers]
    same = all(room.keys.stride() == rooms[0].keys.stride() for room in rooms)
    return rooms if same else None


def _is_growing(layer: object, window: int) -> bool:
    """Whether a layer is one of transformers' default ones, which holds all that a window needs."""
    if type(layer) not in LAZY and not isinstance(layer, LazyLayer):
        return False
    own = getattr(layer, "sliding_window", None)
    return own is None or own == window


def _scales_of(room: Room | Int8Room) -> tuple[torch.Tensor, ...]:
    """The scales of int8 keys and values; nothing of others."""
    return (room.key_scale, room.value_scale) if isinstance(room, Int8Room) else ()
