"""Rows of a matrix on threads, in panels that do not depend on how many threads there are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tritllm.native.blas import on_one_thread
from tritllm.native.threads import run

PANEL_ROWS = 256  # a multiple of 16; how many rows a product has may decide its last bits


def each_panel(rows: int, threads: int, work: Callable[[slice], None]) -> None:
    """Calls `work` for every panel of rows. Matrix products within use one thread each."""
    spans = [slice(a, min(a + PANEL_ROWS, rows)) for a in range(0, rows, PANEL_ROWS)]
    with on_one_thread():
        run([partial(work, span) for span in spans], threads)
