"""Layers of transformers' cache whose tensors are made when someone looks at them.

The native step writes a token's keys and values by address. Tensors that show them cost more than
some of the step's own work, and while only the native step runs nobody wants them.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class Room:
    """Memory of one layer with room for tokens to come: keys and values [B, heads, capacity, D],
    a token at its place in the sequence.

    start: the first that is held, not 0 where a window was past it. tokens: the end. shown: the
    furthest end of tensors that were handed out; a token before it is never written again.
    """

    __slots__ = ("keys", "shown", "start", "tokens", "values")

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, start: int, tokens: int) -> None:
        self.keys, self.values = keys, values
        self.start, self.tokens, self.shown = start, tokens, 0


class LazyLayer(DynamicLayer):  # type: ignore[misc]
    """transformers' growing layer, over a `Room`. Copies and pickles are of the stock class.

    Whoever sets its tensors, as most methods of a cache do, makes it a stock layer again.
    """

    _layer_type = None  # a layer of a cache becomes this; no cache is made of it
    stock: type[DynamicLayer] = DynamicLayer

    room: Room

    @property
    def keys(self) -> torch.Tensor:
        """[B, heads, T, D]: a view, which later tokens do not change."""
        return self._view("keys")

    @keys.setter
    def keys(self, tensor: Any) -> None:
        become_stock(self)
        self.keys = tensor

    @property
    def values(self) -> torch.Tensor:
        """As `keys`."""
        return self._view("values")

    @values.setter
    def values(self, tensor: Any) -> None:
        become_stock(self)
        self.values = tensor

    def _first(self) -> int:
        """The first token that the layer's tensors show."""
        return self.room.start

    def _view(self, name: str) -> torch.Tensor:
        room, first = self.room, self._first()
        room.shown = max(room.shown, room.tokens)
        view: torch.Tensor = getattr(room, name).narrow(2, first, room.tokens - first)
        return view

    def get_seq_length(self) -> int:
        """The number of tokens."""
        return self.room.tokens

    def crop(self, tokens_to_remove: int) -> None:
        """As transformers'; in place where nobody was shown the tokens that go."""
        left = self.room.tokens + tokens_to_remove
        if tokens_to_remove == 0:
            return
        if tokens_to_remove < 0 < left and left >= self.room.shown and self._can_go_back(left):
            self.room.tokens = left
        else:
            become_stock(self)
            self.crop(tokens_to_remove)

    def _can_go_back(self, tokens: int) -> bool:
        """Whether transformers' layer could be left with so many tokens."""
        return True

    def __reduce_ex__(self, protocol: Any) -> Any:
        """An object of the stock class with tensors of its own."""
        return object.__new__, (self.stock,), stock_state(self)


class LazySlidingLayer(LazyLayer, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """The same of a layer that keeps the keys of a window: it shows those that the next token sees,
    but its room may hold more.
    """

    _layer_type = None
    stock = DynamicSlidingWindowLayer

    @property
    def cumulative_length(self) -> int:
        """The number of tokens."""
        return self.room.tokens

    @cumulative_length.setter
    def cumulative_length(self, tokens: int) -> None:
        become_stock(self)
        self.cumulative_length = tokens

    def _first(self) -> int:
        room = self.room
        if self._is_recording():  # what is to be cropped later is shown, too
            return room.start
        return max(room.start, room.tokens - (self.sliding_window - 1))

    def _is_recording(self) -> bool:
        return bool(getattr(self, "record_past", False))

    def _can_go_back(self, tokens: int) -> bool:
        """Past the window only one that records can, and only to where its window is held."""
        within = self.room.tokens < self.sliding_window
        held = self.room.start <= max(0, tokens - (self.sliding_window - 1))
        return held and (within or self._is_recording())


LAZY = {kind.stock: kind for kind in (LazyLayer, LazySlidingLayer)}


def become_lazy(layer: DynamicLayer, room: Room) -> None:
    """Have a stock or a lazy layer show what is in `room`."""
    for name in ("keys", "values", "cumulative_length"):
        layer.__dict__.pop(name, None)
    layer.__class__ = LAZY.get(type(layer), type(layer))
    layer.__dict__["room"] = room


def become_stock(layer: LazyLayer) -> None:
    """Give a lazy layer the tensors that it shows, and its class back."""
    state = stock_state(layer)
    layer.__class__ = layer.stock
    layer.__dict__.clear()
    layer.__dict__.update(state)


def stock_state(layer: LazyLayer) -> dict[str, Any]:
    """The attributes of a stock layer that holds the same."""
    state = {name: value for name, value in layer.__dict__.items() if name != "room"}
    if isinstance(layer, LazySlidingLayer):
        state["cumulative_length"] = layer.room.tokens
    return {**state, "keys": layer.keys, "values": layer.values}
