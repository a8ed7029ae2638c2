"""The maps as a PNG, for a card or a paper. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tritllm.pictures.colours import KEPT_COLOUR, Scale, scales_of
from tritllm.pictures.layer_map import ModelMap, Stack, short_kind

_INCH = 0.2  # a row; a column is twice as wide


def draw_maps(path: Path, maps: Sequence[ModelMap]) -> None:
    """Write a PNG: for every stack of every folder a map by depth and one by error."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scales = scales_of(maps)[:2]
    panels = [(each, stack, scale) for each in maps for stack in each.stacks for scale in scales]
    rows = max(len(stack.rows) for _, stack, _ in panels)
    columns = [max(4, len(stack.kinds)) for _, stack, _ in panels]
    figure = Figure(
        figsize=(sum(columns) * 2 * _INCH + 0.8 * len(panels), rows * _INCH + 2.2), dpi=130,
        layout="constrained",
    )  # fmt: skip
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(panels), squeeze=False, width_ratios=columns)[0]
    for axes, (each, stack, scale) in zip(grid, panels, strict=True):
        _draw_stack(axes, stack, scale, rows)
        bits = each.measures.file_bits
        first = f"{each.name}, {bits:.2f} bits a weight" if scale is scales[0] else ""
        axes.set_title(f"{first}\n{scale.title}", fontsize=8, loc="left")
    figure.savefig(path, dpi="figure", format="png")


def _draw_stack(axes: Any, stack: Stack, scale: Scale, most_rows: int) -> None:
    from matplotlib.patches import Rectangle

    for y, label in enumerate(stack.rows):
        for x, kind in enumerate(stack.kinds):
            cell = stack.cells.get((label, kind))
            if cell is None:
                continue
            step = scale.step(cell)
            colour = KEPT_COLOUR if step is None else scale.colours[step]
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white"))
            axes.text(
                x + 0.5, y + 0.5, scale.label(cell), ha="center", va="center", fontsize=6,
                color=scale.ink(step),
            )  # fmt: skip
    axes.set_xlim(0, max(4, len(stack.kinds)))
    axes.set_ylim(most_rows, 0)
    heads = [short_kind(kind) for kind in stack.kinds]
    axes.set_xticks([x + 0.5 for x in range(len(heads))], heads, rotation=60, fontsize=7)
    shown = range(0, len(stack.rows), -(-len(stack.rows) // 24))
    axes.set_yticks([y + 0.5 for y in shown], [stack.rows[y] for y in shown], fontsize=7)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
