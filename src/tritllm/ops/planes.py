"""How many of their trit planes packed layers read, of all those that they hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from tritllm.errors import TritError
from tritllm.format.trits import DEPTHS
from tritllm.ops import changes

MOST = "_most"  # the attribute of a layer that says how many planes it reads, if it holds as many


class ReadsPlanes(nn.Module):  # type: ignore[misc]
    """A packed layer's choice of planes, and the memory that serves it.

    Memory that a device prepared may have the planes of each weight together, all of which are then
    read. Once fewer have been asked for, memory is made with planes apart: made again, once, where
    there is some already.
    """

    def __init__(self) -> None:
        super().__init__()
        self._most = DEPTHS[-1]
        self._together = False  # of what was prepared last
        self._apart = False  # fewer planes were asked for

    @property
    def depth(self) -> int:
        """Trit planes that are held, and saved."""
        return int(self._buffers["weight"].shape[0])

    @property
    def planes(self) -> int:
        """Trit planes that are read, 1..depth; may be set. Raises TritError for another number."""
        return min(self._most, self.depth)

    @planes.setter
    def planes(self, planes: int) -> None:
        if planes not in range(1, self.depth + 1):
            raise TritError(f"planes {planes!r:.40} is not 1..{self.depth}")
        read_planes([self], planes)

    @property
    def planes_together(self) -> bool:
        """Whether there is prepared memory of which all planes are read, or none."""
        return self._together and self._buffers["prepared"] is not None

    def _needs_planes_apart(self) -> bool:
        return self._apart or self._most < self.depth

    def _leave_planes_apart(self) -> None:
        """From now on; bytes that are no trits are left for the layer's next call to name."""
        self._apart = True
        if self.planes_together:
            self._prepare_if_valid()

    def _prepare_if_valid(self) -> None:
        """Prepare the layer anew."""
        raise NotImplementedError


def read_planes(layers: Iterable[ReadsPlanes], planes: int) -> None:
    """Have layers read their top `planes` planes, or all where they hold fewer.

    For models, which switch hundreds of layers at once, maybe for every token: a fraction of a
    microsecond a layer, past nn.Module's slow way to attributes, but for the first switch of each.
    """
    for layer in layers:
        own = layer.__dict__
        own[MOST] = planes
        if not own["_apart"] and planes < layer.depth:
            layer._leave_planes_apart()
    changes.note_planes()


@contextmanager
def reading_planes(layers: Sequence[ReadsPlanes], planes: int) -> Iterator[None]:
    """Within it the layers read so many planes; afterwards as many as before."""
    before = [layer.__dict__[MOST] for layer in layers]
    read_planes(layers, planes)
    try:
        yield
    finally:
        for layer, most in zip(layers, before, strict=True):
            layer.__dict__[MOST] = most
        changes.note_planes()
