"""The length of drafts and whether there are any, by costs that are given."""

from __future__ import annotations

import random

import pytest

from tritllm.integrations.transformers.drafting.costs import Costs
from tritllm.integrations.transformers.drafting.pace import MOST_DRAFTED, Pace


def generate(
    pace: Pace, accepted: float, draft: float, another: float, tokens: int = 1500
) -> tuple[float, list[int]]:
    """Seconds for so many tokens, where a step takes 1, and the drafts' lengths."""
    chance, seconds, made, lengths = random.Random(3), 0.0, 0, []
    while made < tokens:
        length, reached = 0, 1.0
        if pace.drafts_now():
            while not length or pace.goes_on(length, reached):
                length, reached = length + 1, reached * accepted
                pace.costs.add_drafted(pace.planes, [draft])
        kept = next((i for i in range(length) if chance.random() > accepted), length)
        for i in range(min(kept + 1, length)):
            pace.acceptance.add(accepted, i < kept)
        verification = 1 + another * length
        pace.add_round(length, kept + 1, draft * length, verification)
        seconds, made = seconds + draft * length + verification, made + kept + 1
        lengths.append(length)
    return seconds / made * tokens, lengths


def best_rate(accepted: float, draft: float, another: float) -> float:
    return max(
        sum(accepted**i for i in range(k + 1)) / (1 + k * (draft + another))
        for k in range(MOST_DRAFTED + 1)
    )


@pytest.mark.parametrize(
    ("accepted", "draft", "another", "length"),
    [
        (0.95, 0.1, 0.05, range(5, 8)),
        (0.9, 0.3, 0.1, range(2, 5)),
        (0.7, 0.3, 0.1, range(1, 3)),
        (0.99, 0.8, 0.05, range(1, 8)),
    ],
)
def test_near_the_best_length(accepted, draft, another, length):
    seconds, lengths = generate(Pace(2, may_stop=False), accepted, draft, another)
    late = lengths[len(lengths) // 2 :]
    assert round(sum(late) / len(late)) in length
    assert 1500 / seconds > 0.95 * best_rate(accepted, draft, another)


@pytest.mark.parametrize("tokens", [100, 400, 1500])
@pytest.mark.parametrize(("accepted", "draft"), [(0.0, 1.0), (0.3, 0.6), (0.5, 0.9), (0.8, 0.8)])
def test_auto_gives_up_before_it_costs_three_percent(accepted, draft, tokens):
    pace = Pace(2, may_stop=True)
    seconds, lengths = generate(pace, accepted, draft, 0.2, tokens)
    assert seconds < tokens / 0.97
    assert pace.off or tokens == 100 or accepted == 0.8
    assert not pace.off or lengths[-1] == 0


def test_auto_goes_on_where_it_pays():
    pace = Pace(2, may_stop=True)
    seconds, lengths = generate(pace, 0.9, 0.4, 0.1)
    assert not pace.off
    assert seconds < 1500 / 1.25
    assert 1.2 < pace.gain < 1.6
    assert 0 in lengths[40:]  # it looks again what a step without a draft takes


def test_the_text_ends_a_draft():
    pace = Pace(2, may_stop=False)
    generate(pace, 0.9, 0.3, 0.1)
    assert pace.goes_on(2, 0.9)
    assert not pace.goes_on(2, 0.1)
    assert not pace.goes_on(MOST_DRAFTED, 1.0)


def test_the_choice_of_planes():
    pace = Pace(3, may_stop=True)
    pace.costs.add_verified(1, 1.0)
    for planes, seconds in ((1, 0.3), (2, 0.5), (3, 0.9)):
        pace.costs.add_drafted(planes, [seconds])
    rates = {r: pace.expected_rate(r, a) for r, a in ((1, 0.6), (2, 0.9), (3, 0.97))}
    assert max(rates, key=rates.__getitem__) == 2
    assert rates[2] == pytest.approx(best_rate(0.9, 0.5, 0.1))


def test_costs_between_and_beyond_what_was_measured():
    costs = Costs()
    assert (costs.verification(4), costs.another, costs.drafted(1)) == (0, 0, 0)
    costs.add_verified(2, 1.0)
    assert costs.verification(4) == pytest.approx(1.2)  # guessed
    costs.add_verified(6, 2.0)
    assert costs.another == 0.25
    assert (costs.verification(3), costs.verification(8)) == (1.25, 2.5)
    for seconds in (2.0, 2.0, 50.0):  # one was disturbed
        costs.add_verified(6, seconds)
    assert costs.verification(6) == 2.0
