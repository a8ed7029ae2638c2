"""How often what a packed layer runs was replaced, over all layers of the process.

Code that keeps addresses of layers' memory (the native step) compares one number a token instead
of looking at every tensor: as long as `count()` is what it was, no TritLinear has replaced its
prepared memory, its packed planes or its bias.
"""

from __future__ import annotations

from itertools import count as _numbers

_next = _numbers(1)
_last = 0
_last_of_planes = 0


def note() -> None:
    """Say that something which a packed layer computes with was replaced."""
    global _last
    _last = next(_next)  # a number of its own, so that two threads' notes are two changes


def count() -> int:
    """The number of the last change; to be compared with `!=`, not ordered."""
    return _last


def note_planes() -> None:
    """Say that packed layers read another number of planes; what they hold is what it was."""
    global _last_of_planes
    _last_of_planes = next(_next)


def planes_count() -> int:
    """The number of the last such switch; to be compared with `!=`."""
    return _last_of_planes
