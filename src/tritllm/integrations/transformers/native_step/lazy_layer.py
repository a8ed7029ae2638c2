"""A layer of transformers' cache whose tensors are made when someone looks at them.

The native step writes a token's keys and values by address. Tensors that show them cost more than
some of the step's own work, and while only the native step runs nobody wants them.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer


class Room:
    """Memory of one layer with room for tokens to come: keys and values [B, heads, capacity, D].

    tokens: how many are there. shown: the most that tensors which were handed out show; a token
    among these is never written again.
    """

    __slots__ = ("keys", "shown", "tokens", "values")

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, tokens: int) -> None:
        self.keys, self.values, self.tokens, self.shown = keys, values, tokens, 0


class LazyLayer(DynamicLayer):  # type: ignore[misc]
    """transformers' growing layer, over a `Room`. Copies and pickles are of the stock class.

    Whoever sets its tensors, as most methods of a cache do, makes it a stock layer again.
    """

    _layer_type = None  # one layer of a cache becomes this; no cache is made of it

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

    def _view(self, name: str) -> torch.Tensor:
        room = self.room
        room.shown = max(room.shown, room.tokens)
        view: torch.Tensor = getattr(room, name).narrow(2, 0, room.tokens)
        return view

    def get_seq_length(self) -> int:
        """The number of tokens."""
        return self.room.tokens

    def crop(self, tokens_to_remove: int) -> None:
        """As transformers'; in place where nobody was shown the tokens that go."""
        left = self.room.tokens + tokens_to_remove
        if tokens_to_remove == 0:
            return
        if tokens_to_remove < 0 < left and left >= self.room.shown:
            self.room.tokens = left
        else:
            become_stock(self)
            self.crop(tokens_to_remove)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """An object of the stock class with tensors of its own."""
        return object.__new__, (DynamicLayer,), stock_state(self)


def become_lazy(layer: DynamicLayer, room: Room) -> None:
    """Have a stock or a lazy layer show what is in `room`."""
    for name in ("keys", "values"):
        layer.__dict__.pop(name, None)
    layer.__class__ = LazyLayer
    layer.__dict__["room"] = room


def become_stock(layer: LazyLayer) -> None:
    """Give a lazy layer the tensors that it shows, and its class back."""
    state = stock_state(layer)
    layer.__class__ = DynamicLayer
    layer.__dict__.clear()
    layer.__dict__.update(state)


def stock_state(layer: LazyLayer) -> dict[str, Any]:
    """The attributes of a stock layer that holds the same."""
    state = {name: value for name, value in layer.__dict__.items() if name != "room"}
    return {**state, "keys": layer.keys, "values": layer.values}
