"""The fewest bits with which a model's divergence stays within a limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tritllm.allocation.groups import Group, bits_per_weight
from tritllm.allocation.swaps import Budget, Chosen, Depths, best_by_sum, predicted
from tritllm.format.trits import DEPTHS

if TYPE_CHECKING:
    from tritllm.allocation.measured_model import MeasuredModel, Sample

MEASUREMENTS = 6  # at most
_NEAR = 0.97  # of the limit: no fewer bits are looked for from there


def fewest_by_sum(
    groups: Sequence[Group], kl: Mapping[str, Sequence[float]], limit: float
) -> Depths:
    """The depths with the fewest bytes whose sum of divergences is within the limit.

    The deepest of all where none is. Found by bisection of the bytes, to a thousandth of a bit.
    """
    weights = sum(group.weights for group in groups)
    names = [group.name for group in groups]
    best = dict.fromkeys(names, DEPTHS[-1])
    shallowest = dict.fromkeys(names, DEPTHS[0])
    if predicted(kl, shallowest) <= limit:
        return shallowest
    low, high = (sum(group.nbytes(d) for group in groups) for d in (DEPTHS[0], DEPTHS[-1]))
    while 8000 * (high - low) > weights:
        middle = (low + high) // 2
        depths = best_by_sum(groups, kl, Budget(middle, 0))
        if depths is not None and predicted(kl, depths) <= limit:
            best, high = depths, middle
        else:
            low = middle
    return best


def reach(
    model: MeasuredModel,
    sample: Sample,
    groups: Sequence[Group],
    kl: Mapping[str, Sequence[float]],
    limit: float,
    on_measured: Callable[[int], None] | None = None,
) -> Chosen | None:
    """The depths with the fewest bits among those tried whose measured divergence is within it.

    None where even the deepest of all is not within the limit.
    """
    best: Chosen | None = None
    before: float | None = None
    asked, tried = limit, set()
    count = 0
    deepest = dict.fromkeys((group.name for group in groups), DEPTHS[-1])
    while count < MEASUREMENTS:
        depths = fewest_by_sum(groups, kl, asked)
        if count == MEASUREMENTS - 1 and best is None:
            depths = deepest
        if tuple(depths.values()) in tried:
            break
        tried.add(tuple(depths.values()))
        model.set_depths({m: depths[group.name] for group in groups for m in group.modules})
        measured = model.record(sample)
        count += 1
        before = measured if before is None else before
        if on_measured:
            on_measured(count)
        if measured <= limit and (
            best is None or bits_per_weight(groups, depths) < bits_per_weight(groups, best.depths)
        ):
            best = Chosen(depths, predicted(kl, depths), measured)
        if _NEAR * limit <= measured <= limit or (measured > limit and depths == deepest):
            break
        asked *= limit / measured if measured else 2.0
    if best is None:
        return None
    return Chosen(best.depths, best.predicted, best.measured, before, count)
