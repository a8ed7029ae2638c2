"""How many of their trit planes packed layers read, of all those that they hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from tritllm.ops import changes
from tritllm.ops.trit_linear import MOST, TritLinear


def read_planes(layers: Iterable[TritLinear], planes: int) -> None:
    """Have layers read their top `planes` planes, or all where they hold fewer.

    The first time that a layer is to read fewer, its memory may be made again (`TritLinear`). After
    that a switch takes a fraction of a microsecond a layer.
    """
    for layer in layers:
        layer.read(planes)
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
