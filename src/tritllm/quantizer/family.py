"""How a model family names and stores its linear weights: what a row of FAMILIES holds."""

from __future__ import annotations

from dataclasses import dataclass

from tritllm.format.modules import matches
from tritllm.quantizer.towers import Tower


@dataclass(frozen=True)
class Family:
    """How a family names its linear weights (a module's whole name) and stores them.

    linear: regular expression of the modules to quantize.
    transposed: whether they are stored as [in_features, out_features].
    towers: parts that are quantized on request alone.
    """

    linear: str
    transposed: bool = False
    towers: tuple[Tower, ...] = ()

    def tower_of(self, module: str) -> Tower | None:
        """The tower that a module belongs to, if any."""
        return next((tower for tower in self.towers if matches(module, (tower.glob,))), None)
