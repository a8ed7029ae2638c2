"""A cache of keys and values as int8: `model.generate(**inputs, past_key_values=Int8Cache())`.

Each 32 elements of a head share a float32 scale, 9 bits an element (`tritllm.step.int8_cache`
defines it). The native step reads and writes the bytes as they are; transformers' own attention is
given the numbers that they stand for, and a prompt's own keys and values as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from tritllm.native.structures import CACHE_GROUP

_LEAST_ROOM = 64  # tokens
_SMALLEST = 2.0**-100  # a group below it counts as zero


@dataclass
class Int8Room:
    """Memory of one layer with room for tokens to come, of which there are `tokens`.

    keys, values: int8 [B, heads, capacity, D]. key_scale, value_scale: float32 [B, heads, capacity,
    D / 32].
    """

    keys: torch.Tensor
    values: torch.Tensor
    key_scale: torch.Tensor
    value_scale: torch.Tensor
    tokens: int

    @classmethod
    def empty(cls, like: torch.Tensor, capacity: int) -> Int8Room:
        """For keys and values of the batch, heads and width of `like` [B, heads, T, D]."""
        batch, heads, _, width = like.shape
        q = torch.empty((2, batch, heads, capacity, width), dtype=torch.int8, device=like.device)
        scale = q.new_empty((*q.shape[:-1], width // CACHE_GROUP), dtype=torch.float32)
        return cls(q[0], q[1], scale[0], scale[1], 0)

    @property
    def capacity(self) -> int:
        """Tokens for which there is memory."""
        return int(self.keys.shape[2])

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All memory: keys, values and their scales."""
        return self.keys, self.values, self.key_scale, self.value_scale

    def of_sequences(self, indices: torch.Tensor) -> Int8Room:
        """Memory of its own for these sequences of the batch."""
        keys, values, *scales = (x.index_select(0, indices) for x in self.tensors())
        return Int8Room(keys, values, scales[0], scales[1], self.tokens)


class Int8Layer(DynamicLayer):  # type: ignore[misc]
    """One layer: transformers' growing one, but for what it holds."""

    _layer_type = None  # `Int8Cache` alone is made of it

    def __init__(self, **kwargs: Any) -> None:
        self.room: Int8Room | None = None
        super().__init__(**kwargs)

    @property
    def keys(self) -> torch.Tensor | None:
        """[B, heads, T, D] of the model's dtype: the numbers that the bytes stand for."""
        room = self.room
        return None if room is None else self._numbers(room.keys, room.key_scale, room.tokens)

    @keys.setter
    def keys(self, tensor: None) -> None:
        self._empty(tensor)

    @property
    def values(self) -> torch.Tensor | None:
        """As `keys`."""
        room = self.room
        return None if room is None else self._numbers(room.values, room.value_scale, room.tokens)

    @values.setter
    def values(self, tensor: None) -> None:
        self._empty(tensor)

    def _empty(self, tensor: None) -> None:
        if tensor is not None:
            raise AttributeError("an int8 cache makes its tensors itself; use its methods")
        self.room = None

    def _numbers(self, q: torch.Tensor, scale: torch.Tensor, tokens: int) -> torch.Tensor:
        groups = q[:, :, :tokens].unflatten(-1, (-1, CACHE_GROUP)).float()
        return (groups * scale[:, :, :tokens, :, None]).flatten(-2).to(self.dtype)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Take the dtype and device of the first tokens.

        Raises ValueError for heads that are not a multiple of 32 wide.
        """
        if key_states.shape[-1] % CACHE_GROUP or value_states.shape != key_states.shape:
            raise ValueError(
                f"an int8 cache takes keys and values of one shape, heads a multiple of "
                f"{CACHE_GROUP} wide: not {list(key_states.shape)}, {list(value_states.shape)}"
            )
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep new keys and values [B, heads, T, D]; all of them, the new ones as they came."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.keys, self.values
        room = self.with_room(key_states, key_states.shape[2])
        new = slice(room.tokens, room.tokens + key_states.shape[2])
        for states, q, scale in (
            (key_states, room.keys, room.key_scale),
            (value_states, room.values, room.value_scale),
        ):
            q[:, :, new], scale[:, :, new] = quantized(states.detach())
        room.tokens = new.stop
        if before[0] is None or not before[0].numel():
            return key_states, value_states
        return torch.cat([before[0], key_states], 2), torch.cat([before[1], value_states], 2)

    def with_room(self, like: torch.Tensor, new: int) -> Int8Room:
        """The memory, with room for `new` tokens more; where it is new, shaped like `like`."""
        room = self.room
        held = 0 if room is None else room.tokens
        if room is None or held + new > room.capacity:
            larger = Int8Room.empty(like, held + max(new, _LEAST_ROOM, held // 4))
            if room is not None:
                for to, old in zip(larger.tensors(), room.tensors(), strict=True):
                    to[:, :, :held] = old[:, :, :held]
            larger.tokens = held
            self.room = room = larger
        return room

    def get_seq_length(self) -> int:
        """The number of tokens."""
        return 0 if self.room is None else self.room.tokens

    def crop(self, tokens_to_remove: int) -> None:
        """Take the last tokens off, in place: a negative number."""
        if self.room is not None and tokens_to_remove < 0:
            self.room.tokens = max(0, self.room.tokens + tokens_to_remove)
        elif tokens_to_remove > 0:
            raise ValueError("crop takes a negative number: how many tokens to take off")

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Put other sequences in the places of the batch, as beam search asks."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these sequences."""
        if self.room is not None:
            self.room = self.room.of_sequences(indices.to(self.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence."""
        if self.room is not None:
            batch = torch.arange(self.room.keys.shape[0], device=self.device)
            self.room = self.room.of_sequences(batch.repeat_interleave(repeats))


class Int8Cache(DynamicCache):  # type: ignore[misc]
    """A growing cache of int8 keys and values, of models whose heads are a multiple of 32 wide."""

    def __init__(self) -> None:
        Cache.__init__(self, layer_class_to_replicate=Int8Layer)


def quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """X [..., D] -> int8 [..., D] and float32 scales [..., D / 32]: `step.int8_cache.quantized`."""
    groups = x.float().unflatten(-1, (-1, CACHE_GROUP))
    largest = groups.abs().amax(-1)
    finite = largest.isfinite()
    usable = finite & (largest >= _SMALLEST)
    inverse = 127 / largest.where(usable, 1)
    q = (groups.where(usable[..., None], 0) * inverse[..., None]).round().to(torch.int8)
    scale = (largest.where(usable, 0) / 127).where(finite, torch.nan)
    return q.flatten(-2), scale
