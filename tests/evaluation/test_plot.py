"""Labels of a plot cover neither each other nor points, and nothing is lost."""

from __future__ import annotations

import itertools
import math

import pytest

pytest.importorskip("matplotlib")

import matplotlib.figure

from tritllm.evaluation.plot import Point, plot_quality

POINTS = [
    Point(f"{series}-d{depth}", series, 1.6 * depth + 0.3, 1e6 * depth + shift, 0.2 * rest**depth,
          20 + 5 * rest**depth)
    for series, shift, rest in (("data-free", 0, 0.1), ("calibrated", 5e3, 0.05))
    for depth in (1, 2, 3, 4)
] + [Point(f"Q{bits}", "other", bits + 0.5, 6e5 * bits, 0.1**bits, 20 + 0.2**bits)
     for bits in (2, 3, 4, 5)]  # fmt: skip


def drawn(path, points, monkeypatch):
    """Write the plot; returns its figure."""
    figures = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda self, *a, **b: (figures.append(self), save(self, *a, **b))[1],
    )
    plot_quality(path, points, 20.0, "beside a model")
    assert path.read_bytes().startswith(b"\x89PNG")
    return figures[0]


def test_labels_do_not_overlap(tmp_path, monkeypatch):
    figure = drawn(tmp_path / "plot.png", POINTS, monkeypatch)
    kl_bits, kl_size, *_ = figure.axes
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "log", "linear", "linear"]
    for axes in (kl_bits, kl_size):
        assert sorted(text.get_text() for text in axes.texts) == sorted(p.label for p in POINTS)
        boxes = [text.get_window_extent() for text in axes.texts]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        frame = axes.get_window_extent()
        assert all(frame.contains(*corner) for box in boxes for corner in (box.min, box.max))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["data-free", "calibrated", "other", "reference: 20.000"]


def test_a_model_equal_to_the_reference_has_no_logarithm(tmp_path, monkeypatch):
    same = Point("same", "other", 16.0, 1e7, 0.0, 20.0)
    unknown = Point("unknown", "other", math.nan, 1e6, 0.01, 21.0)
    figure = drawn(tmp_path / "plot.png", [*POINTS[:2], same, unknown], monkeypatch)
    labels = [{text.get_text() for text in axes.texts} for axes in figure.axes]
    two = {POINTS[0].label, POINTS[1].label}
    assert labels == [two, two | {"unknown"}, two | {"same"}, two | {"same", "unknown"}]
