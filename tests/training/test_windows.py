"""Windows held back and windows drawn."""

from __future__ import annotations

import numpy as np
import pytest

from tritllm.errors import TritError
from tritllm.training.windows import TrainingWindows


@pytest.mark.parametrize(("tokens", "context"), [(20, 10), (57, 8), (1000, 16), (200_000, 256)])
def test_no_token_held_back_is_drawn_and_every_other_can_be(tokens, context):
    windows = TrainingWindows(np.arange(tokens), context, seed=1)
    held = windows.held_back
    assert held.shape[1] == context
    assert held.size <= max(context, 8192)
    assert (np.diff(held, axis=1) == 1).all()
    drawn = np.concatenate([windows.drawn(step, 16) for step in range(200)])
    assert (np.diff(drawn, axis=1) == 1).all()
    assert not np.intersect1d(drawn, held).size
    if tokens <= 1000:  # all the rest is seen where a window fits between two held back
        seen = len(np.union1d(drawn, held))
        assert seen >= tokens - (len(held) + 1) * (context - 1)


def test_a_step_draws_the_same_windows_whenever_it_is_asked():
    windows = TrainingWindows(np.arange(5000), 32, seed=1)
    again = TrainingWindows(np.arange(5000), 32, seed=1)
    other = TrainingWindows(np.arange(5000), 32, seed=2)
    assert np.array_equal(windows.drawn(7, 8), again.drawn(7, 8))
    assert not np.array_equal(windows.drawn(7, 8), windows.drawn(8, 8))
    assert not np.array_equal(windows.drawn(7, 8), other.drawn(7, 8))


def test_a_text_too_short_to_judge_by_is_refused():
    with pytest.raises(TritError, match="the text has 19 tokens, too few to train on"):
        TrainingWindows(np.arange(19), 10, seed=0)
