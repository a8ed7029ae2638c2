"""How many of their trit planes packed layers read, of all those that they hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from tritllm.ops import changes
from tritllm.ops.trit_linear import MOST, TritLinear


def read_planes(layers: Iterable[TritLinear], planes: int) -> None:
    """Have layers read their top `planes` planes, or all where they hold fewer.

    For models, which switch hundreds of layers at once, maybe for every token: a fraction of a
    microsecond a layer, past nn.Module's slow way to attributes.
    """
    for layer in layers:
        layer.__dict__[MOST] = planes
    changes.note_planes()


@contextmanager
def reading_planes(layers: Sequence[TritLinear], planes: int) -> Iterator[None]:
    """Within it the layers read so many planes; afterwards as many as before."""
    before = [layer.__dict__[MOST] for layer in layers]
    read_planes(layers, planes)
    try:
        yield
    finally:
        for layer, most in zip(layers, before, strict=True):
            layer.__dict__[MOST] = most
        changes.note_planes()
