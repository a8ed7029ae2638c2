"""Better depths by measuring whole models: what each group costs alone does not simply add up.

At one trit a weight errors are large, and the cost of several groups together differs from the sum
of what each costs alone. So the best few depth maps by the sum, under several assumptions about how
costs at one trit add, are measured; then single exchanges within the best: some groups get a trit
more and others one less, in the order of the predicted change, on tokens that the sensitivities
were not measured on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tritllm.allocation.choose import choose
from tritllm.allocation.groups import Group
from tritllm.format.trits import DEPTHS

if TYPE_CHECKING:
    from tritllm.allocation.measured_model import MeasuredModel, Sample

EXCHANGES = 24  # measured at most
ONE_TRIT_SHARES = (1.0, 0.7, 0.5)  # of its cost alone that a group at one trit adds to the sum
_MOVES = 24  # of either direction that exchanges are made of
_GAIN = 0.995  # an exchange is taken that leaves less than this of the divergence

Depths = dict[str, int]  # by group's name
_Move = tuple[int, float, str, int]  # change of bytes, change of the sum, group, new depth


@dataclass(frozen=True)
class Budget:
    """Bytes of all groups together in the file: not above `most`, and not below `least` where that
    can be had.
    """

    most: int
    least: int


@dataclass(frozen=True)
class Chosen:
    """Depths by group, what the sum predicts and what was measured, and how many measurements.

    measured: None where there was nothing to measure with. before: of the first depths measured,
    those with the least predicted sum.
    """

    depths: Depths
    predicted: float
    measured: float | None = None
    before: float | None = None
    measurements: int = 0


def best_by_sum(
    groups: Sequence[Group],
    kl: Mapping[str, Sequence[float]],
    budget: Budget,
    one_trit_share: float = 1.0,
) -> Depths | None:
    """The depths with the least sum of divergences; None where no depths keep to the budget."""
    costs = [[group.nbytes(depth) for depth in DEPTHS] for group in groups]
    losses = [[kl[g.name][0] * one_trit_share, *kl[g.name][1:]] for g in groups]
    found = choose(costs, losses, budget.most, budget.least)
    if found is None:
        return None
    return {group.name: DEPTHS[i] for group, i in zip(groups, found, strict=True)}


def predicted(kl: Mapping[str, Sequence[float]], depths: Mapping[str, int]) -> float:
    """The sum of the divergences that groups cost alone."""
    return sum(kl[name][depth - 1] for name, depth in depths.items())


def improve(
    model: MeasuredModel,
    sample: Sample,
    groups: Sequence[Group],
    kl: Mapping[str, Sequence[float]],
    budget: Budget,
    on_measured: Callable[[int], None] | None = None,
) -> Chosen | None:
    """The depths with the least measured divergence among those tried; None as `best_by_sum`.

    The model is left with one of the tried depths.
    """
    by_name = {group.name: group for group in groups}
    candidates: list[Depths] = []
    for share in ONE_TRIT_SHARES:
        depths = best_by_sum(groups, kl, budget, share)
        if depths is None:
            return None
        if depths not in candidates:
            candidates.append(depths)
    measured = []
    for depths in candidates:
        _set(model, by_name, depths)
        measured.append(model.record(sample))
        if on_measured:
            on_measured(len(measured))
    before, least = measured[0], min(measured)
    current = candidates[measured.index(least)]
    if len(candidates) > 1 and current is not candidates[-1]:
        _set(model, by_name, current)
        model.record(sample)
    count, tried = len(measured), {tuple(depths.values()) for depths in candidates}
    for _ in range(EXCHANGES):
        following = next(
            (d for d in _exchanges(groups, kl, current, budget) if tuple(d.values()) not in tried),
            None,
        )
        if following is None:
            break
        tried.add(tuple(following.values()))
        changed = [by_name[name] for name in current if current[name] != following[name]]
        _set(model, by_name, {group.name: following[group.name] for group in changed})
        found = model.divergence(sample, model.first_block(changed))
        count += 1
        if on_measured:
            on_measured(count)
        if found < least * _GAIN:
            least, current = found, following
            model.record(sample)
        else:
            _set(model, by_name, {group.name: current[group.name] for group in changed})
    return Chosen(current, predicted(kl, current), least, before, count)


def _set(model: MeasuredModel, groups: Mapping[str, Group], depths: Mapping[str, int]) -> None:
    model.set_depths({m: depth for name, depth in depths.items() for m in groups[name].modules})


def _exchanges(
    groups: Sequence[Group],
    kl: Mapping[str, Sequence[float]],
    depths: Depths,
    budget: Budget,
) -> Iterator[Depths]:
    """Depths within the budget with a trit more or less in one to three groups, best first."""
    total = sum(group.nbytes(depths[group.name]) for group in groups)
    moves: list[_Move] = []
    for group in groups:
        now = depths[group.name]
        for depth in (now - 1, now + 1):
            if depth in DEPTHS:
                bytes_more = group.nbytes(depth) - group.nbytes(now)
                loss = kl[group.name][depth - 1] - kl[group.name][now - 1]
                moves.append((bytes_more, loss, group.name, depth))
    moves.sort(key=lambda move: move[1] / abs(move[0]))  # of those the best of either kind
    more = [move for move in moves if move[0] > 0][:_MOVES]
    less = [move for move in moves if move[0] < 0][:_MOVES]
    found: list[tuple[float, tuple[_Move, ...]]] = []
    for one in more:
        sets: list[tuple[_Move, ...]] = [(one,)]
        sets += [(one, a) for a in less if a[2] != one[2]]
        sets += [
            (one, a, b)
            for i, a in enumerate(less)
            for b in less[i + 1 :]
            if one[2] not in (a[2], b[2])
        ]
        sets += [
            (one, two, a)
            for two in more
            for a in less
            if one[2] < two[2] and a[2] not in (one[2], two[2])
        ]
        for chosen in sets:
            size = total + sum(move[0] for move in chosen)
            if budget.least <= size <= budget.most:
                found.append((sum(move[1] for move in chosen), chosen))
    found.sort(key=lambda entry: entry[0])
    for _, chosen in found:
        yield {**depths, **{name: depth for _, _, name, depth in chosen}}
