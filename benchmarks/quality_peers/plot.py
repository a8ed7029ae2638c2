"""Divergence against bits a weight, ours and the peers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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


def plot_quality(path: Path, rows: list[Row], title: str) -> None:
    """Write a PNG; which point is which row stands in the table."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = [row for row in rows if "missing" not in row and row["bits"] <= MOST_BITS]
    for peer, calibrated, label, colour, marker, joined in FAMILIES:
        found = sorted(
            (r["bits"], r["kl"])
            for r in shown
            if r["peer"] == peer and bool(r["calibrated"]) == calibrated
        )
        if not found:
            continue
        bits, divergences = zip(*found, strict=True)
        axes.plot(
            bits, divergences, marker=marker, color=colour, label=label, markersize=6,
            linestyle="-" if joined else "", linewidth=1.2,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("bits a weight of the quantized layers, in the file")
    axes.set_ylabel("mean KL(float || quantized), nats a token")
    axes.set_title(title)
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper right", frameon=False)
    figure.savefig(path, dpi=110)
