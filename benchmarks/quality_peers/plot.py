"""Divergence against bits a weight, ours and the peers'."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

Row = dict[str, Any]
FAMILIES = (  # peer, whether it saw the text; label, colour, marker, whether points are joined
    ("v2", False, "tritllm v2", "#9dbbe0", "o", True),
    ("v3", False, "tritllm v3", "#4a83c4", "o", True),
    ("calibrated", True, "tritllm calibrated", "#0b2f6b", "o", True),
    ("mixed", True, "tritllm mixed", "#0b2f6b", "s", False),
    ("trained", True, "tritllm trained", "#0b2f6b", "*", False),
    ("ggml", False, "GGUF", "#e0a24a", "^", False),
    ("ggml", True, "GGUF, importance matrix", "#a85b00", "v", False),
    ("bitsandbytes", False, "bitsandbytes", "#6b6b6b", "D", False),
    ("hqq", False, "HQQ", "#7fb069", "x", False),
    ("gptq", True, "GPTQ", "#b03a5b", "+", False),
    ("autoround", True, "AutoRound", "#7a3fa0", "P", False),
    ("exl3", True, "EXL3", "#000000", "X", False),
)
MOST_BITS = 7.2
NEAR = 5  # points between a mark and its name; farther names have a line
PLACES = tuple(
    product((NEAR, 14, 26), ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)))
)


def plot_quality(path: Path, rows: list[Row], title: str) -> None:
    """Write a PNG; names of points are set where they cover nothing, or left out."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = [row for row in rows if "missing" not in row and row["bits"] <= MOST_BITS]
    points: list[tuple[float, float, str, str]] = []
    for peer, calibrated, label, colour, marker, joined in FAMILIES:
        found = sorted(
            (r["bits"], r["kl"], r["name"])
            for r in shown
            if r["peer"] == peer and bool(r["calibrated"]) == calibrated
        )
        if not found:
            continue
        bits, divergences, names = zip(*found, strict=True)
        axes.plot(
            bits, divergences, marker=marker, color=colour, label=label, markersize=6,
            linestyle="-" if joined else "", linewidth=1.2,
        )  # fmt: skip
        short = [name.removesuffix(" imatrix").removeprefix(f"{label} ") for name in names]
        points += [(b, k, n, colour) for b, k, n in zip(bits, divergences, short, strict=True)
                   if peer not in ("v2", "v3", "calibrated")]  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("bits a weight of the quantized layers, in the file")
    axes.set_ylabel("mean KL(float || quantized), nats a token")
    axes.set_title(title)
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper right", frameon=False)
    canvas.draw()
    place_names(axes, points)
    figure.savefig(path, dpi=110)


def place_names(axes: Axes, points: list[tuple[float, float, str, str]]) -> None:
    """Write each name beside its point, at the first place that is free."""
    line = {"arrowstyle": "-", "lw": 0.4}
    renderer = axes.figure.canvas.get_renderer()
    marks = axes.transData.transform([(bits, divergence) for bits, divergence, _, _ in points])
    taken = [axes.get_legend().get_window_extent(renderer)]
    for bits, divergence, name, colour in points:
        for distance, (right, up) in PLACES:
            text = axes.annotate(
                name, (bits, divergence), xytext=(right * distance, up * distance),
                textcoords="offset points", fontsize=7, color=colour,
                ha={1: "left", 0: "center", -1: "right"}[right],
                va={1: "bottom", 0: "center", -1: "top"}[up],
                arrowprops=line | {"color": colour} if distance > NEAR else None,
            )  # fmt: skip
            box = Text.get_window_extent(text, renderer).expanded(1.02, 1.05)
            inside = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
            if inside and not any(box.overlaps(other) for other in taken) and not any(
                box.contains(x, y) for x, y in marks
            ):  # fmt: skip
                taken.append(box)
                break
            text.remove()
