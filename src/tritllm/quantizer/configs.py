"""Quantization configs: a name that says which depth each linear weight gets.

`uniform-d1` .. `uniform-d4` give every weight the same depth. A mixed-depth config is another
branch of `parse_config` that returns a Config with its own rules.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tritllm.errors import TritError
from tritllm.format.modules import matches
from tritllm.format.trits import DEPTHS

CONFIG_NAMES = tuple(f"uniform-d{depth}" for depth in DEPTHS)


@dataclass(frozen=True)
class Config:
    """A named rule from a module's name to a depth; the last matching override wins."""

    name: str
    depth: int
    overrides: tuple[tuple[str, int], ...] = ()

    def depth_of(self, module: str) -> int:
        """Depth 1..4 of the linear weight of `module`."""
        depth = self.depth
        for glob, value in self.overrides:
            if matches(module, [glob]):
                depth = value
        return depth


def parse_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """A config by its name, with overrides written as GLOB=DEPTH, module globs.

    Raises TritError for an unknown name or depth.
    """
    if name not in CONFIG_NAMES:
        raise TritError(f"unknown config {name!r}; known: {', '.join(CONFIG_NAMES)}")
    pairs = []
    for override in overrides:
        match = re.fullmatch(r"(.+)=([1-9])", override)
        if not match or int(match[2]) not in DEPTHS:
            raise TritError(f"depth override {override!r} is not GLOB=DEPTH with a depth of 1..4")
        pairs.append((match[1], int(match[2])))
    return Config(name, int(name[-1]), tuple(pairs))
