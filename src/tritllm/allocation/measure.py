"""Sensitivities: what one group alone costs at each depth, every other matrix being float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tritllm.allocation.groups import Group
from tritllm.allocation.measured_model import FLOAT, MeasuredModel, Sample
from tritllm.allocation.sensitivities import Sensitivities

MEASURED_DEPTHS = (1, 2, 3)


def measure(
    model: MeasuredModel,
    sample: Sample,
    groups: Sequence[Group],
    known: Sensitivities,
    path: Path | None,
    on_group: Callable[[Group, int], None] | None = None,
) -> None:
    """Measure the groups that are not known yet; the file is written after each.

    The divergence at depth 4 is that at depth 3 times the ratio of the squared errors: both are
    small enough for the divergence to be quadratic in the error.

    Args:
        model: all float, and so it is left.
        sample: of the model, recorded while it was float.
        groups: to measure.
        known: what is measured so far; what is measured now is added.
        path: the file, or None to write none.
        on_group: called after each group with the number of groups done.
    """
    for index, group in enumerate(groups):
        if known.of(group) is None:
            known.add(group, _of(model, sample, group))
            if path is not None:
                known.save(path)
        if on_group:
            on_group(group, index + 1)


def _of(model: MeasuredModel, sample: Sample, group: Group) -> list[float]:
    errors = model.errors(group)
    first = model.first_block([group])
    found = []
    for depth in MEASURED_DEPTHS:
        model.set_depths(dict.fromkeys(group.modules, depth))
        found.append(model.divergence(sample, first))
    model.set_depths(dict.fromkeys(group.modules, FLOAT))
    last = MEASURED_DEPTHS[-1]
    return [*found, found[-1] * (errors[4] / errors[last] if errors[last] else 0.0)]
