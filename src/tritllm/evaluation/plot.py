"""Quality against size, as pictures. Needs matplotlib.

A label stands at the first place around its point where it covers neither another label nor a
point nor the figure's edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Any

from tritllm.pictures.colours import SERIES_COLOURS

_MARKERS = {"data-free": "o", "calibrated": "s", "trained": "^", "other": "D"}
_PLACES = [  # of a label around its point, in points: (x, y, horizontal, vertical alignment)
    (x * far, y * (6 + 12 * ring), horizontal, vertical)
    for ring, far in enumerate((7, 9, 12, 15))
    for x, horizontal in ((1, "left"), (-1, "right"), (0, "center"))
    for y, vertical in ((1, "bottom"), (-1, "top"))
]


@dataclass(frozen=True)
class Point:
    """One model. series: a name of SERIES_COLOURS. bits: a weight. size: bytes of its files."""

    label: str
    series: str
    bits: float
    size: float
    kl: float
    perplexity: float


def plot_quality(
    path: Path, points: Sequence[Point], reference_perplexity: float, title: str
) -> None:
    """Write a PNG with mean KL (logarithmic) and perplexity against bits a weight and file size.

    points: those of a series are joined in order of size.
    reference_perplexity: drawn as a level line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, 2, sharex="col", sharey="row")
    megabytes = max(point.size for point in points) < 1e9
    unit = ("MB", 1e6) if megabytes else ("GB", 1e9)
    xs = [[point.bits for point in points], [point.size / unit[1] for point in points]]
    ys = [[point.kl for point in points], [point.perplexity for point in points]]
    labelled = []
    for row, y in enumerate(ys):
        for column, x in enumerate(xs):
            axes = grid[row][column]
            if row == 1:
                axes.axhline(reference_perplexity, color="0.5", linestyle="--", linewidth=1)
            drawn = [
                (point.label, point.series, a, b)
                for point, a, b in zip(points, x, y, strict=True)
                if isfinite(a) and (row == 1 or b > 0)  # a model equal to the reference has no log
            ]
            _series(axes, drawn)
            if row == 0 and any(b > 0 for b in y):
                axes.set_yscale("log")
            _frame(axes)
            labelled.append((axes, drawn))
    grid[0][0].set_ylabel("mean KL(reference || model), nats a token")
    grid[1][0].set_ylabel("perplexity")
    grid[1][0].set_xlabel("bits a weight of the linear layers, in the file")
    grid[1][1].set_xlabel(f"file size, {unit[0]}")
    handles, names = grid[1][0].get_legend_handles_labels()
    handles = [*handles, grid[1][0].lines[0]]
    names = [*names, f"reference: {reference_perplexity:.3f}"]
    figure.legend(handles, names, loc="outside upper right", ncols=len(names), frameon=False)
    figure.suptitle(title, x=0.01, ha="left")
    _place_labels(figure, labelled)
    figure.savefig(path, dpi="figure", format="png")


Drawn = Sequence[tuple[str, str, float, float]]  # label, series, x, y


def _series(axes: Any, drawn: Drawn) -> None:
    for series, colour in SERIES_COLOURS.items():
        points = sorted((x, y) for _, name, x, y in drawn if name == series)
        if points:
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                marker=_MARKERS[series],
                linestyle="" if series == "other" else "-",
                color=colour,
                label=series,
            )


def _frame(axes: Any) -> None:
    axes.margins(x=0.15, y=0.15)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _place_labels(figure: Any, panels: Sequence[tuple[Any, Drawn]]) -> None:
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # which lays the axes out; labels must not move them again
    figure.set_layout_engine("none")
    renderer = figure.canvas.get_renderer()
    for axes, drawn in panels:
        frame = axes.get_window_extent(renderer)
        taken = [  # by points
            Bbox.from_bounds(left - 5, bottom - 5, 10, 10)
            for left, bottom in (axes.transData.transform((x, y)) for _, _, x, y in drawn)
        ]
        along = [  # places along the lines, which a label should not cover
            Bbox.from_bounds(*place, 1, 1) for line in axes.lines for place in _along(line)
        ]
        for (label, series, x, y), own in zip(drawn, list(taken), strict=True):
            best = None
            for dx, dy, horizontal, vertical in _PLACES:
                text = axes.annotate(
                    label, (x, y), xytext=(dx, dy), textcoords="offset points", fontsize=8,
                    ha=horizontal, va=vertical, color=SERIES_COLOURS[series],
                )  # fmt: skip
                box = text.get_window_extent(renderer)
                cost = (
                    100 * sum(box.overlaps(other) for other in taken if other is not own)
                    + 200 * (not frame.contains(box.x0, box.y0))
                    + 200 * (not frame.contains(box.x1, box.y1))
                    + sum(box.overlaps(place) for place in along)
                )
                if best is not None and cost >= best[0]:
                    text.remove()
                    continue
                if best is not None:
                    best[1].remove()
                best = (cost, text, box)
                if cost == 0:
                    break
            if best is not None:
                taken.append(best[2])


def _along(line: Any) -> list[tuple[float, float]]:
    """Places on a drawn line, some points apart, in pixels of the figure."""
    if line.get_linestyle() in ("", "None"):
        return []
    corners = [tuple(corner) for corner in line.get_transform().transform(line.get_xydata())]
    return [
        (a[0] + (b[0] - a[0]) * step / 50, a[1] + (b[1] - a[1]) * step / 50)
        for a, b in pairwise(corners)
        for step in range(51)
    ]
