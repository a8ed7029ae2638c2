"""Which layer got which depth, as a picture. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tritllm.format.blocks import place_of
from tritllm.format.trits import DEPTHS
from tritllm.pictures.colours import DEPTH_COLOURS

_KINDS = ("attn", "attention", "mlp", "block_sparse_moe")  # attention above, then the rest


def draw_depths(path: Path, depths: Mapping[str, int], title: str) -> None:
    """Write a PNG: a row a kind of layer, a column a block, coloured by depth.

    depths: by module. Layers outside the blocks (lm_head, embeddings) have the column "else".
    Experts of a block are one cell, which shows the range where their depths differ.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    cells: dict[tuple[str, int | None], set[int]] = {}
    for module, depth in depths.items():
        place = place_of(module)
        cells.setdefault((place.kind, place.block), set()).add(depth)
    kinds = sorted({kind for kind, _ in cells}, key=_order)
    numbers = sorted({block for _, block in cells if block is not None})
    columns: list[int | None] = [*numbers]
    if any(block is None for _, block in cells):
        columns.append(None)

    width = max(4.8, 0.3 * len(columns) + 2.6)
    figure = Figure(figsize=(width, 0.34 * len(kinds) + 1.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (kind, block), found in cells.items():
        x, y = columns.index(block), kinds.index(kind)
        deepest = max(found)
        axes.add_patch(
            Rectangle(
                (x, y), 1, 1, facecolor=DEPTH_COLOURS[deepest - 1], edgecolor="white", linewidth=2
            )
        )
        label = str(deepest) if len(found) == 1 else f"{min(found)}-{deepest}"
        light = deepest <= DEPTHS[1]
        axes.text(
            x + 0.5, y + 0.5, label, ha="center", va="center", fontsize=8,
            color="#143d66" if light else "white",
        )  # fmt: skip
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(kinds), 0)
    axes.set_yticks([i + 0.5 for i in range(len(kinds))], kinds)
    step = max(1, -(-len(columns) // 40))
    shown = [i for i, block in enumerate(columns) if block is None or i % step == 0]
    labels = ["else" if columns[i] is None else str(columns[i]) for i in shown]
    axes.set_xticks([i + 0.5 for i in shown], labels)
    axes.set_xlabel("block")
    axes.set_title(title, fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.legend(
        handles=[
            Patch(facecolor=colour, label=f"{depth} trit{'s' if depth > 1 else ''}")
            for depth, colour in zip(DEPTHS, DEPTH_COLOURS, strict=True)
        ],
        loc="outside lower center",
        ncols=len(DEPTHS),
        frameon=False,
        fontsize=8,
    )
    figure.savefig(path, dpi=150)


def _order(kind: str) -> tuple[int, str]:
    """Attention first, feed-forward after it, what is in no block last."""
    place = next((i for i, part in enumerate(_KINDS) if part in kind), len(_KINDS))
    return place, kind
