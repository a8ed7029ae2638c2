"""Notices when a module that the native step goes past is changed, at the time of the change.

`watch` has a module count its changes in `ops.changes`, whoever makes them: attributes (forward,
epsilon), submodules, parameters and buffers, also where others write into a module's dicts, as
torch.func, accelerate and ModuleList do. So a token compares one number.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from tritllm.ops import changes

_DICTS = ("_modules", "_parameters", "_buffers")


class WatchedModule(nn.Module):  # type: ignore[misc]
    """Counts changes of a module's attributes. Copies and pickles are of the stock class."""

    stock: type

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        changes.note()

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        changes.note()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        try:
            return super()._apply(fn, recurse)
        finally:
            changes.note()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """An object of the stock class with the state that the stock class tells."""
        state = super().__reduce_ex__(2)[2]
        return nn.Module.__new__, (self.stock,), state


def watch(module: nn.Module) -> None:
    """Have the module count its changes from now on; nothing for one that does already.

    The class is swapped for a subclass of the same name, because only a class sees attributes being
    set; the dicts are replaced by such as count writes, because torch writes into them directly.
    """
    for name in _DICTS:
        held = module.__dict__[name]
        if type(held) is dict:  # others, such as a module's that is compiled, stay
            module.__dict__[name] = _WatchedDict(held)
    if not isinstance(module, WatchedModule):
        own: type = type(module)  # not `kind_of` it, which has another's forward
        module.__class__ = subclass(own, WatchedModule)


@cache
def subclass(kind: Any, first: Any) -> type:
    """`first` and then `kind`, under kind's name, which transformers and accelerate look at."""
    stock = kind.__dict__.get("stock", kind)
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "stock": stock}
    return type(kind.__name__, (first, kind), names)


def kind_of(module: Any) -> type:
    """A module's class, and that of a watched one before it was watched."""
    own = type(module)
    kind: type = own.__dict__.get("stock", own)
    return kind


class _WatchedDict(dict[str, Any]):
    """A module's dict that counts changes. Copies and pickles are plain dicts."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        changes.note()

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        changes.note()

    def __ior__(self, other: Any) -> Any:  # type: ignore[misc]
        self.update(other)
        return self

    def update(self, *arguments: Any, **more: Any) -> None:
        super().update(*arguments, **more)
        changes.note()

    def pop(self, *arguments: Any) -> Any:
        value = super().pop(*arguments)
        changes.note()
        return value

    def popitem(self) -> tuple[str, Any]:
        item = super().popitem()
        changes.note()
        return item

    def setdefault(self, key: str, default: Any = None) -> Any:
        value = super().setdefault(key, default)
        changes.note()
        return value

    def clear(self) -> None:
        super().clear()
        changes.note()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (dict(self),)
