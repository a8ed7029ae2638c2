"""Bits a weight against perplexity. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def plot_perplexity(
    path: Path,
    points: Sequence[tuple[str, float, float]],
    float_perplexity: float,
    title: str,
) -> None:
    """Write a PNG.

    points: (label, bits a weight, perplexity), joined in the given order.
    float_perplexity: drawn as a level line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhline(float_perplexity, color="0.5", linestyle="--", linewidth=1)
    axes.annotate(
        f"float16: {float_perplexity:.2f}",
        (1.0, float_perplexity),
        xycoords=("axes fraction", "data"),
        xytext=(-4, -12),
        textcoords="offset points",
        ha="right",
        color="0.4",
    )
    bits, perplexities = [p[1] for p in points], [p[2] for p in points]
    axes.plot(bits, perplexities, marker="o", color="#1f5fa8")
    for label, x, y in points:
        axes.annotate(
            f"{label}: {y:.2f}", (x, y), xytext=(7, 6), textcoords="offset points", color="#1f5fa8"
        )
    axes.margins(x=0.2, y=0.15)
    axes.set_xlabel("bits a quantized weight, in the file")
    axes.set_ylabel("perplexity on held-out text")
    axes.set_title(title)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
