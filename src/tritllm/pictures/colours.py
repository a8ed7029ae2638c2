"""What a cell is coloured by: depth, error or sensitivity; and colours that all eyes tell apart.

Depth is one blue from light to dark; the others take eight steps of viridis (van der Walt and
Smith, 2015), whose lightness alone orders them. Every cell also says its figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tritllm.format.trits import DEPTHS
from tritllm.pictures.layer_map import Cell, ModelMap

DEPTH_COLOURS = ("#d9e6f2", "#8db8dc", "#3f7fb5", "#143d66")  # of 1..4 trits a weight
STEPS = (
    "#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725",
)  # fmt: skip
# Models in plots of quality, by how they were made.
SERIES_COLOURS = {
    "data-free": "#1f5fa8",
    "calibrated": "#b5442a",
    "trained": "#2d7d46",
    "other": "#6b6b6b",
}
# Bytes of a file by what they hold, after Okabe and Ito (2008).
PART_COLOURS = {
    "trits": "#0072b2",
    "scales and codebooks": "#56b4e9",
    "embeddings": "#e69f00",
    "output layer": "#d55e00",
    "all else that is kept": "#8a8a8a",
}
KEPT_COLOUR = "#c9ced4"
DARK, LIGHT = "#10151b", "#ffffff"  # of figures on light and dark cells
_DARK_STEPS = 4  # of STEPS, as many as want light figures


@dataclass(frozen=True)
class Scale:
    """How one figure is shown. colours: from the lowest figure to the highest; edges: between them,
    one fewer. Cells without the figure have KEPT_COLOUR.
    """

    name: str
    title: str
    colours: Sequence[str]
    edges: Sequence[float]

    def figure(self, cell: Cell) -> float | None:
        """What the cell is coloured by; None where it has none."""
        if self.name == "depth":
            return cell.depths[-1] if cell.depths else None
        return cell.sqnr if self.name == "error" else cell.sensitivity

    def step(self, cell: Cell) -> int | None:
        """The index of the cell's colour; None for KEPT_COLOUR."""
        figure = self.figure(cell)
        return None if figure is None else sum(figure >= edge for edge in self.edges)

    def label(self, cell: Cell) -> str:
        """The figure, in as few letters as a cell has room for."""
        figure = self.figure(cell)
        if figure is None:
            return "16b" if not cell.depths and self.name == "depth" else ""
        if self.name == "depth":
            return "-".join(str(d) for d in dict.fromkeys((cell.depths[0], cell.depths[-1])))
        if self.name == "error":
            return "exact" if math.isinf(figure) else f"{figure:.1f}"
        return f"{figure:.0e}".replace("e-0", "e-") if figure else "0"

    def ink(self, step: int | None) -> str:
        """The colour of a figure on a cell."""
        dark = step is not None and (step >= 2 if self.name == "depth" else step < _DARK_STEPS)
        return LIGHT if dark else DARK

    def legend(self) -> list[tuple[str, str]]:
        """(colour, what it stands for), from the lowest to the highest."""
        if self.name == "depth":
            named = [f"{depth} trit{'' if depth == 1 else 's'}" for depth in DEPTHS]
            return list(zip(self.colours, named, strict=True))
        shown = [f"{edge:.1f}" if self.name == "error" else f"{edge:.0e}" for edge in self.edges]
        lows, highs = ["", *shown], [*shown, ""]
        words = [
            f"{low} to {high}" if low and high else f"below {high}" if high else f"from {low}"
            for low, high in zip(lows, highs, strict=True)
        ]
        return list(zip(self.colours, words, strict=True)) if shown else [(self.colours[-1], "all")]


def scales_of(maps: Sequence[ModelMap]) -> list[Scale]:
    """The scales that these maps have figures for, the same for all of them."""
    cells = [cell for each in maps for cell in each.cells()]
    scales = [Scale("depth", "Depth, trits a weight", DEPTH_COLOURS, (2, 3, 4))]
    errors = [c.sqnr for c in cells if c.sqnr is not None and math.isfinite(c.sqnr)]
    scales.append(Scale("error", "SQNR, dB (less is worse)", *_steps(errors)))
    costs = [c.sensitivity for c in cells if c.sensitivity]
    if any(c.sensitivity is not None for c in cells):
        title = "Sensitivity, nats a token at this depth alone"
        colours, edges = _steps([math.log(cost) for cost in costs])
        scales.append(Scale("sensitivity", title, colours, [math.exp(edge) for edge in edges]))
    return scales


def _steps(figures: Sequence[float]) -> tuple[Sequence[str], Sequence[float]]:
    """Colours, and edges of equal distance between the figures' ends."""
    if not figures or max(figures) - min(figures) < 1e-9:
        return STEPS[-1:], ()
    low, wide = min(figures), (max(figures) - min(figures)) / len(STEPS)
    return STEPS, [low + wide * step for step in range(1, len(STEPS))]
