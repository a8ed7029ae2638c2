"""What bits a weight cost in perplexity and divergence, as a picture. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLOURS = ("#1f5fa8", "#c8571b")  # apart for the colour-blind as well
MARKERS = ("o", "s")


@dataclass(frozen=True)
class Point:
    """A quantized model: its label, bits a weight, perplexity and mean KL from float in nats."""

    label: str
    bits: float
    perplexity: float
    mean_kl: float


def plot_depths(
    path: Path, curves: Mapping[str, Sequence[Point]], float_perplexity: float, title: str
) -> None:
    """Write a PNG: perplexity beside divergence, the latter on a logarithmic scale.

    curves: at most two, by name; the points of each are joined in the given order.
    float_perplexity: drawn as a level line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    label = f"float16: {float_perplexity:.2f}"
    left.axhline(float_perplexity, color="0.5", linestyle="--", linewidth=1, label=label)
    _draw(left, curves, "perplexity", "{:.2f}")
    left.set_ylabel("perplexity on held-out text")
    right.set_yscale("log")
    _draw(right, curves, "mean_kl", "{:.2g}")
    right.set_ylabel("mean KL(float || quantized), nats a token")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _draw(axes: Any, curves: Mapping[str, Sequence[Point]], what: str, number: str) -> None:
    for order, (name, points) in enumerate(curves.items()):
        values = [getattr(point, what) for point in points]
        colour = COLOURS[order]
        bits = [point.bits for point in points]
        axes.plot(bits, values, marker=MARKERS[order], color=colour, label=name)
        for point, value in zip(points, values, strict=True):
            axes.annotate(
                f"{point.label}: {number.format(value)}",
                (point.bits, value),
                xytext=(7, 7) if order == 0 else (-7, -13),
                ha="left" if order == 0 else "right",
                textcoords="offset points",
                color=colour,
                fontsize=8,
            )
    axes.margins(x=0.22, y=0.14)
    axes.set_xlabel("bits a quantized weight, in the file")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
