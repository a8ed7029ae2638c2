"""Choosing depths: a knapsack with one choice a group, solved by dynamic programming."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

UNITS = 1 << 18  # cells of the table; a larger budget is counted in coarser units
_TABLE_BYTES = 1 << 28  # of choices, one byte a cell and group


def choose(
    costs: Sequence[Sequence[int]],
    losses: Sequence[Sequence[float]],
    budget: int,
    least: int = 0,
) -> list[int] | None:
    """The choice of each group that makes the sum of losses least.

    Args:
        costs: of each group, the cost of each of its choices, not negative.
        losses: the loss of each choice.
        budget: the sum of the costs may not be above it.
        least: nor, where that can be had, below this.

    Returns the index of each group's choice, or None where even the least costs are above the
    budget. Exact where the budget, in units of what divides the differences of all costs, has at
    most 2^18 units; else costs are rounded up to coarser units, which together keep back at most
    one unit a group, and never exceed the budget. Of equal sums the first choices win.
    """
    base = [min(row) for row in costs]
    room = budget - sum(base)
    if room < 0:
        return None
    extra = [[cost - low for cost in row] for row, low in zip(costs, base, strict=True)]
    unit = math.gcd(*(cost for row in extra for cost in row)) or 1
    room = min(room, sum(max(row) for row in extra))
    limit = min(UNITS, max(_TABLE_BYTES // len(costs), 1))
    unit = max(unit, -(-room // limit))
    cells = room // unit + 1
    best = np.full(cells, np.inf)  # least loss by the exact number of units spent
    best[0] = 0.0
    taken = np.zeros((len(costs), cells), np.int8)
    for group, (row, values) in enumerate(zip(extra, losses, strict=True)):
        after = np.full(cells, np.inf)
        for index, (cost, loss) in enumerate(zip(row, values, strict=True)):
            shift = -(-cost // unit)
            if shift >= cells:
                continue
            candidate = best[: cells - shift] + loss
            better = candidate < after[shift:]
            np.copyto(after[shift:], candidate, where=better)
            np.copyto(taken[group, shift:], index, where=better)
        best = after
    first = max(-(-(least - sum(base)) // unit), 0)
    start = first if np.isfinite(best[first:]).any() else 0
    cell = start + int(np.argmin(best[start:]))
    chosen = [0] * len(costs)
    for group in reversed(range(len(costs))):
        chosen[group] = int(taken[group, cell])
        cell -= -(-extra[group][chosen[group]] // unit)
    return chosen
