"""The report as one HTML page that loads nothing: every drawing, and the same as tables.

Which scale colours the maps is a choice among radio buttons that the style reads, so that the page
works without its script, which only repeats a cell's words at the bottom, for fingers.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from tritllm.model_card.encoder import lines_of_encoder
from tritllm.pictures.colours import KEPT_COLOUR, PART_COLOURS, SERIES_COLOURS, Scale, scales_of
from tritllm.pictures.drawings import (
    decibels,
    divergence_svg,
    matrix_in_words,
    stack_svg,
)
from tritllm.pictures.evaluations import EvaluationFile
from tritllm.pictures.layer_map import Matrix, ModelMap, Stack, short_kind
from tritllm.quantities import size

WORST = 15  # matrices of each model, named in a table
_SCRIPT = """
"use strict";
const told = document.getElementById("told");
const tell = (event) => {
  const cell = event.target.closest?.(".cell");
  told.textContent = cell ? cell.querySelector("title").textContent : "";
};
document.addEventListener("pointerover", tell);
document.addEventListener("click", tell);
"""
_FIELD = re.compile(r"\{\{(\w+)\}\}")


def report_page(maps: Sequence[ModelMap], evaluations: Sequence[EvaluationFile]) -> str:
    """The page of some packed folders, and of evaluations that were found."""
    scales = scales_of(maps)
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    names = ", ".join(each.name for each in maps)
    fields = {
        "title": escape(f"tritllm report: {names if len(names) < 120 else f'{len(maps)} folders'}"),
        "script_hash": f"sha256-{digest}",
        "script": _SCRIPT,
        "scale_style": _style(scales),
        "radios": "".join(
            f'<input class="by" type="radio" name="by" id="by-{scale.name}"'
            f"{' checked' if scale is scales[0] else ''}>"
            for scale in scales
        ),
        "body": "\n".join(
            [
                _overview(maps),
                *map(_evaluation, evaluations),
                _switch(scales),
                '<div class="models">',
                *(_model(each, scales) for each in maps),
                "</div>",
            ]
        ),
    }
    template = (files("tritllm.pictures") / "page.html").read_text("utf-8")
    return _FIELD.sub(lambda found: fields[found[1]], template)


def _style(scales: Sequence[Scale]) -> str:
    """For each scale: its colours, its figures, and its legend where it is chosen."""
    lines = []
    for scale in scales:
        chosen, letter = f"#by-{scale.name}:checked ~ main", scale.name[0]
        steps = [*((str(i), c, scale.ink(i)) for i, c in enumerate(scale.colours)),
                 ("k", KEPT_COLOUR, scale.ink(None))]  # fmt: skip
        lines += [f"{chosen} rect.{letter}{step} {{ fill: {c}; }}" for step, c, _ in steps]
        lines += [f".map .cell .i{letter}{step} {{ fill: {ink}; }}" for step, _, ink in steps]
        lines += [
            f"{chosen} .map .cell .t{letter} {{ display: inline; }}",
            f"{chosen} .for-{scale.name} {{ display: block; }}",
            f"{chosen} label[for=by-{scale.name}] {{ background: var(--accent); "
            "border-color: var(--accent); color: var(--on-accent); }",
            f"#by-{scale.name}:focus-visible ~ main label[for=by-{scale.name}] "
            "{ outline: 2px solid var(--text); outline-offset: 2px; }",
        ]
    return "\n".join(lines)


def _switch(scales: Sequence[Scale]) -> str:
    labels = "".join(
        f'<label for="by-{scale.name}">{scale.name.capitalize()}</label>' for scale in scales
    )
    legends = "".join(
        f'<div class="for for-{scale.name}"><p class="dim">{escape(scale.title)}</p>'
        f"{_legend([*scale.legend(), (KEPT_COLOUR, 'not quantized, or not known')])}</div>"
        for scale in scales
    )
    return f'<h3>Layers, coloured by</h3><div class="switch">{labels}</div>{legends}'


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    spans = (f'<span style="--of:{colour}">{escape(words)}</span>' for colour, words in entries)
    return f'<div class="legend">{"".join(spans)}</div>'


def _overview(maps: Sequence[ModelMap]) -> str:
    rows = [
        [
            escape(each.name),
            f"{each.measures.parameters:,}",
            f"{each.measures.coverage_percent:.1f} %",
            f"{each.measures.information_bits:.2f}",
            f"{each.measures.file_bits:.2f}",
            f"{8 * each.measures.packed_bytes / each.measures.parameters:.2f}",
            size(each.measures.packed_bytes),
            size(each.measures.model_bytes),
            _mean(each.measures.sqnr_mean_db),
            _mean(each.measures.sqnr_lowest_db),
        ]
        for each in maps
    ]
    heads = [
        "folder", "parameters", "quantized", "bits a weight: information", "in the file",
        "with all that is kept", "packed", "16-bit", "SQNR, mean of matrices", "lowest",
    ]  # fmt: skip
    return _table(heads, rows)


def _mean(value: float | None) -> str:
    return "exact" if value is None else f"{value:.2f} dB"


def _evaluation(found: EvaluationFile) -> str:
    made = {point.made for point in found.points}
    legend = _legend((c, series) for series, c in SERIES_COLOURS.items() if series in made)
    rows = [
        [
            f"{number}. {escape(p.label)}", f"{p.bits:.2f}", size(p.file_bytes),
            f"{p.kl:.4g}", f"{p.perplexity:.3f}", f"{100 * p.same_top:.2f} %",
        ]
        for number, p in enumerate(found.points, 1)
    ]  # fmt: skip
    reference = found.reference_perplexity
    beside = "" if reference is None else f"; perplexity of the reference {reference:.3f}"
    heads = ["model", "bits a weight", "file", "mean KL, nats", "perplexity", "same top token"]
    return (
        f'<h3>Divergence from the reference</h3><p class="dim">{escape(found.text + beside)}</p>'
        f"{divergence_svg(found.points)}{legend}{_table(heads, rows)}"
    )


def _model(each: ModelMap, scales: Sequence[Scale]) -> str:
    manifest, source = each.manifest, each.manifest["source"]
    revision = f" at {source['revision'][:12]}" if source["revision"] else ""
    facts = [
        f"{source['model']}{revision}, config {manifest['config']}, codec {manifest['codec']}",
        *lines_of_encoder(manifest.get("encoder", {})),
    ]
    total = sum(each.parts.values())
    bar = "".join(
        f'<div style="width:{100 * n / total:.3f}%;background:{PART_COLOURS[part]}" '
        f'title="{part}: {size(n)}"></div>'
        for part, n in each.parts.items()
    )
    parts = [
        (PART_COLOURS[part], f"{part} {size(n)} ({100 * n / total:.1f} %)")
        for part, n in each.parts.items()
    ]
    return "\n".join(
        [
            f'<section class="model"><h2>{escape(each.name)}</h2>',
            *(f'<p class="dim">{escape(fact)}</p>' for fact in facts),
            f'<h3>Bytes of the file: {size(total)}</h3><div class="bar">{bar}</div>',
            _legend(parts),
            *(_stack(stack, scales) for stack in each.stacks),
            _outside(each),
            _worst(each),
            "</section>",
        ]
    )


def _stack(stack: Stack, scales: Sequence[Scale]) -> str:
    rows = [[label, *(_words(stack, label, kind) for kind in stack.kinds)] for label in stack.rows]
    heads = ["layer", *map(escape, map(short_kind, stack.kinds))]
    return (
        f"<h3>{escape(stack.name or 'blocks')}</h3>"
        f'<div class="wide">{stack_svg(stack, scales)}</div>'
        f"<details><summary>As a table</summary>{_table(heads, rows)}</details>"
    )


def _words(stack: Stack, label: str, kind: str) -> str:
    cell = stack.cells.get((label, kind))
    if cell is None:
        return ""
    if not cell.depths:
        return "kept"
    depths = "-".join(str(d) for d in dict.fromkeys((cell.depths[0], cell.depths[-1])))
    cost = "" if cell.sensitivity is None else f", {cell.sensitivity:.2g} nats"
    return f"{depths}, {decibels(cell.sqnr or 0.0)}{cost}"


def _outside(each: ModelMap) -> str:
    if not each.outside:
        return ""
    rows = [[escape(m.name), escape(matrix_in_words(m))] for m in each.outside]
    more = f'<p class="dim">and {each.outside_left_out:,} more</p>' * bool(each.outside_left_out)
    return f"<h3>Outside the blocks</h3>{_table(['matrix', ''], rows, 'words')}{more}"


def _worst(each: ModelMap) -> str:
    found: list[Matrix] = [cell.worst for cell in each.cells() if cell.nmse is not None]
    found.sort(key=lambda m: -(m.nmse or 0.0))
    rows = [[escape(m.name), escape(matrix_in_words(m))] for m in found[:WORST]]
    return (
        "<details><summary>The largest errors, of each cell its worst matrix</summary>"
        f"{_table(['matrix', ''], rows, 'words')}</details>"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "figures") -> str:
    """heads and rows are HTML; kind: a class of the page's style."""
    head = "".join(f"<th>{each}</th>" for each in heads)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="name">{c}</td>' if not i else f"<td>{c}</td>" for i, c in enumerate(r)
        )
        + "</tr>"
        for r in rows
    )
    rest = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table class="{kind}">{rest}</table></div>'
