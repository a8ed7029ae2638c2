"""The dynamic programme against trying everything."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from tritllm.allocation import choose as module
from tritllm.allocation.choose import choose


@st.composite
def problems(draw):
    groups = draw(st.integers(1, 4))
    row = st.lists(st.integers(0, 30), min_size=2, max_size=4)
    costs = [sorted(draw(row)) for _ in range(groups)]
    losses = [
        sorted((draw(st.integers(0, 1000)) / 7 for _ in costs[g]), reverse=draw(st.booleans()))
        for g in range(groups)
    ]
    budget = draw(st.integers(0, 130))
    return costs, losses, budget, draw(st.integers(0, budget))


def by_trying(costs, losses, budget, least):
    """The least loss within [least, budget], or within the budget where nothing is in there."""
    found = []
    for choice in itertools.product(*(range(len(row)) for row in costs)):
        cost = sum(row[i] for row, i in zip(costs, choice))
        if cost <= budget:
            found.append((cost < least, sum(row[i] for row, i in zip(losses, choice))))
    return min(found, default=None)


@settings(max_examples=60)
@given(problems())
def test_least_loss_is_found(problem):
    costs, losses, budget, least = problem
    expected = by_trying(costs, losses, budget, least)
    found = choose(costs, losses, budget, least)
    if expected is None:
        assert found is None
        return
    cost = sum(row[i] for row, i in zip(costs, found))
    loss = sum(row[i] for row, i in zip(losses, found))
    assert cost <= budget
    assert (cost < least, round(loss, 6)) == (expected[0], round(expected[1], 6))


def test_coarse_units_keep_to_the_budget(monkeypatch):
    costs = [[0, 1001, 2003, 3001], [0, 907, 1811, 2729], [0, 499, 1009, 1511]]
    losses = [[9.0, 3.0, 1.0, 0.3], [5.0, 2.0, 0.7, 0.2], [4.0, 1.0, 0.4, 0.1]]
    monkeypatch.setattr(module, "UNITS", 100)
    found = choose(costs, losses, 4000)
    assert sum(row[i] for row, i in zip(costs, found)) <= 4000
    # Each group keeps back at most a unit of 40: as good as anything within 3 units less.
    loss = sum(row[i] for row, i in zip(losses, found))
    assert loss <= by_trying(costs, losses, 4000 - 3 * 41, 0)[1]


def test_first_of_equal_choices_wins():
    assert choose([[1, 1, 1]], [[2.0, 2.0, 2.0]], 1) == [0]
