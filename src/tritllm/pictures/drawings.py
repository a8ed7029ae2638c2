"""The page's drawings, as SVG: the map of a stack, and divergence against size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise

from tritllm.pictures.colours import SERIES_COLOURS, Scale
from tritllm.pictures.evaluations import EvaluatedPoint
from tritllm.pictures.layer_map import Cell, Matrix, Stack, short_kind

_WIDE, _HIGH, _LEFT = 34, 18, 34  # a cell, and the rows' labels
_LETTER = 7.2


def stack_svg(stack: Stack, scales: Sequence[Scale]) -> str:
    """A map. A cell's rectangle has a class a scale, of the scale's first letter and the step, and
    so have its figures; the page's style shows one scale at a time.
    """
    heads = [short_kind(kind) for kind in stack.kinds]
    top = 14 + max(map(len, heads)) * _LETTER * 0.75
    width = _LEFT + _WIDE * len(heads) + 0.6 * _LETTER * len(heads[-1])
    height = top + _HIGH * len(stack.rows) + 2
    return "".join(
        [
            f'<svg class="map" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" role="img" '
            f'aria-label="{escape(stack.name)}: the table below says the same">',
            *(_head(kind, i, top) for i, kind in enumerate(stack.kinds)),
            *_rows(stack, scales, top),
            "</svg>",
        ]
    )


def _head(kind: str, column: int, top: float) -> str:
    x, y = _LEFT + _WIDE * (column + 0.4), top - 6
    return (
        f'<text class="head" transform="translate({x:.0f} {y:.0f}) rotate(-48)">'
        f"<title>{escape(kind)}</title>{escape(short_kind(kind))}</text>"
    )


def _rows(stack: Stack, scales: Sequence[Scale], top: float) -> Iterator[str]:
    for row, label in enumerate(stack.rows):
        y = top + _HIGH * row
        yield f'<text class="row" x="{_LEFT - 6}" y="{y + 13:.0f}">{label}</text>'
        for column, kind in enumerate(stack.kinds):
            cell = stack.cells.get((label, kind))
            if cell is not None:
                yield _cell(cell, f"layer {label}, {kind}", _LEFT + _WIDE * column, y, scales)


def _cell(cell: Cell, where: str, x: float, y: float, scales: Sequence[Scale]) -> str:
    steps = [(scale, "k" if (s := scale.step(cell)) is None else str(s)) for scale in scales]
    classes = " ".join(f"{scale.name[0]}{step}" for scale, step in steps)
    figures = "".join(
        f'<text class="t{scale.name[0]} i{scale.name[0]}{step}" x="{x + _WIDE / 2:.0f}" '
        f'y="{y + 13:.0f}">{scale.label(cell)}</text>'
        for scale, step in steps
    )
    return (
        f'<g class="cell"><title>{escape(words_of(cell, where))}</title>'
        f'<rect class="{classes}" x="{x:.0f}" y="{y:.0f}" width="{_WIDE - 1}" '
        f'height="{_HIGH - 1}"/>{figures}</g>'
    )


def words_of(cell: Cell, where: str) -> str:
    """All that a cell says: name, shape, depth and error, of several matrices the worst one's."""
    worst = cell.worst
    if len(cell.matrices) == 1:
        return f"{worst.name}: {matrix_in_words(worst)}"
    depths = "-".join(str(d) for d in dict.fromkeys((*cell.depths[:1], *cell.depths[-1:])))
    error = "" if cell.sqnr is None else f", SQNR {decibels(cell.sqnr)} together"
    return (
        f"{where}: {len(cell.matrices):,} matrices, "
        f"{f'depth {depths}' if depths else 'not quantized'}{error}; the worst is {worst.name}: "
        f"{matrix_in_words(worst)}"
    )


def matrix_in_words(matrix: Matrix) -> str:
    """Shape, depth and error of one matrix."""
    shape = " x ".join(map(str, matrix.shape))
    if matrix.nmse is None:
        return f"{shape}, not quantized"
    sqnr = -10 * math.log10(matrix.nmse) if matrix.nmse else math.inf
    cost = "" if matrix.sensitivity is None else f", sensitivity {matrix.sensitivity:.2g} nats"
    return f"{shape}, depth {matrix.depth}, SQNR {decibels(sqnr)}, NMSE {matrix.nmse:.3g}{cost}"


def decibels(value: float) -> str:
    """In dB; a matrix without any error is exact."""
    return "exact" if math.isinf(value) else f"{value:.2f} dB"


def divergence_svg(points: Sequence[EvaluatedPoint]) -> str:
    """Mean KL (logarithmic) against bits a weight; points have the numbers of the page's table."""
    drawn = [
        (number, point)
        for number, point in enumerate(points, 1)
        if math.isfinite(point.bits) and math.isfinite(point.kl) and point.kl > 0
    ]
    if not drawn:
        return ""
    width, height, left, bottom = 420, 280, 58, 44
    xs = [point.bits for _, point in drawn]
    ys = [math.log10(point.kl) for _, point in drawn]
    x_low, x_high = min(xs) - 0.3, max(xs) + 0.3
    y_low, y_high = math.floor(min(ys) - 0.05), math.ceil(max(ys) + 0.05)

    def at(bits: float, exponent: float) -> tuple[float, float]:
        return (
            left + (width - left - 12) * (bits - x_low) / (x_high - x_low),
            12 + (height - bottom - 12) * (y_high - exponent) / (y_high - y_low),
        )

    parts = [
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="Mean KL divergence against bits a weight; the table says the same">'
    ]
    for exponent in range(y_low, y_high + 1):
        _, y = at(x_low, exponent)
        parts.append(
            f'<path class="grid" d="M{left} {y:.1f}H{width - 12}"/>'
            f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">'
            f"{10.0**exponent:g}</text>"
        )
    step = max(1, math.ceil((x_high - x_low) / 10))
    for bits in range(math.ceil(x_low), math.floor(x_high) + 1, step):
        x, _ = at(bits, y_low)
        parts.append(
            f'<path class="grid" d="M{x:.1f} 12V{height - bottom}"/>'
            f'<text class="tick" x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle">'
            f"{bits}</text>"
        )
    for made, colour in SERIES_COLOURS.items():
        line = sorted((at(p.bits, math.log10(p.kl)) for _, p in drawn if p.made == made))
        if made != "other":
            parts += [
                f'<path d="M{a[0]:.1f} {a[1]:.1f}L{b[0]:.1f} {b[1]:.1f}" stroke="{colour}"/>'
                for a, b in pairwise(line)
            ]
    for number, point in drawn:
        x, y = at(point.bits, math.log10(point.kl))
        colour = SERIES_COLOURS.get(point.made, SERIES_COLOURS["other"])
        said = f"{point.label}: {point.bits:.2f} bits, mean KL {point.kl:.4g} nats"
        parts.append(
            f'<g class="cell"><title>{escape(said)}</title><circle cx="{x:.1f}" cy="{y:.1f}" r="5" '
            f'fill="{colour}"/>'
            f'<text class="tick" x="{x + 8:.1f}" y="{y - 6:.1f}">{number}</text></g>'
        )
    parts.append(
        f'<text class="tick" x="{(left + width) / 2:.0f}" y="{height - 6}" text-anchor="middle">'
        "bits a weight of the linear layers, in the file</text>"
        f'<text class="tick" transform="translate(14 {(height - bottom) / 2:.0f}) rotate(-90)" '
        'text-anchor="middle">mean KL, nats a token</text></svg>'
    )
    return "".join(parts)
