"""Quantization configs: a name, and the depth that each linear weight gets under it.

`uniform-d1` .. `uniform-d4` give every weight the same depth, and so do `qat-d1` .. `qat-d4`, whose
blocks are trained. A mixed config brings a map from
module to depth. A nested one (`nested-d2-d4`) has the deepest depth, and planes on top that are
chosen as those of the shallower ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tritllm.errors import TritError
from tritllm.format.modules import matches
from tritllm.format.trits import DEPTHS

CONFIG_NAMES = tuple(f"{kind}-d{depth}" for kind in ("uniform", "qat") for depth in DEPTHS)


@dataclass(frozen=True)
class Config:
    """A named rule from a module's name to a depth.

    depth: of every module that nothing below speaks of.
    depths: by module, of a mixed config.
    overrides: globs over modules and their depths, which win over both; of several that match, the
        last.
    nested: of a nested config, the depths at which the file is meant to be read, ascending; the
        last is `depth`.
    command_options: words on the command line that give this config again, if its name alone does
        not.
    notes: what `allocation` of report.json says of how `depths` were chosen, in JSON's types.
    """

    name: str
    depth: int
    overrides: tuple[tuple[str, int], ...] = ()
    depths: Mapping[str, int] = field(default_factory=dict, hash=False)
    nested: tuple[int, ...] = ()
    command_options: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)

    def depth_of(self, module: str) -> int:
        """Depth 1..4 of the linear weight of `module`."""
        depth = self.depths.get(module, self.depth)
        for glob, value in self.overrides:
            if matches(module, [glob]):
                depth = value
        return depth

    def is_overridden(self, module: str) -> bool:
        """Whether an override says the depth of `module`."""
        return any(matches(module, [glob]) for glob, _ in self.overrides)

    def overridden(self, overrides: Sequence[tuple[str, int]]) -> Config:
        """The same config with these overrides after its own."""
        return replace(self, overrides=(*self.overrides, *overrides))


def parse_config(name: str) -> Config:
    """A config of one depth by its name. Raises TritError for an unknown one."""
    if name not in CONFIG_NAMES:
        raise TritError(f"unknown config {name!r}; known: {', '.join(CONFIG_NAMES)}")
    return Config(name, int(name[-1]))


def is_block_trained(name: str) -> bool:
    """Whether a config's name says that its blocks are trained to match their float output."""
    return name.startswith("qat-")


def nested_config(depths: Sequence[int]) -> Config:
    """The config of a file to be read at each of these depths, say (2, 4): `nested-d2-d4`.

    Raises TritError unless there are two or more depths of 1..4, ascending.
    """
    depths = tuple(depths)
    if (
        len(depths) < 2
        or any(type(depth) is not int or depth not in DEPTHS for depth in depths)
        or list(depths) != sorted(set(depths))
    ):
        raise TritError(
            f"--nested takes two or more depths of 1..4, ascending, for example 2,4; "
            f"not {','.join(map(str, depths))!r}"
        )
    name = "-".join(["nested", *(f"d{depth}" for depth in depths)])
    options = ("--nested", ",".join(map(str, depths)))
    return Config(name, depths[-1], nested=depths, command_options=options)


def parse_overrides(overrides: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """(glob, depth) of each GLOB=DEPTH, module globs. Raises TritError for anything else."""
    pairs = []
    for override in overrides:
        match = re.fullmatch(r"(.+)=([1-9])", override)
        if not match or int(match[2]) not in DEPTHS:
            raise TritError(f"depth override {override!r} is not GLOB=DEPTH with a depth of 1..4")
        pairs.append((match[1], int(match[2])))
    return tuple(pairs)
