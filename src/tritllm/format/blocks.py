"""Where in a model a module stands, by its name alone: which stack, which block, which kind."""

from __future__ import annotations

import re
from dataclasses import dataclass

_BLOCK = re.compile(r"(?:^|(.*?)\.)(\d+)\.(.+)")
_EXPERT = re.compile(r"\bexperts\.\d+\.")


@dataclass(frozen=True)
class Place:
    """A module's place.

    stack: what stands before the number of the block, such as model.layers; "" for nothing.
    block: the number; None for a module that is in no block, such as lm_head.
    kind: what modules of different blocks have in common: the name within the block, experts alike;
    the module's last name where it is in no block.
    """

    stack: str
    block: int | None
    kind: str


def place_of(module: str) -> Place:
    """The place of a module by its whole name."""
    match = _BLOCK.fullmatch(module)
    if not match:
        return Place("", None, module.rpartition(".")[2])
    return Place(match[1] or "", int(match[2]), _EXPERT.sub("experts.", match[3]))
