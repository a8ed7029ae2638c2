"""Windows of a text: some held back to judge by, the rest drawn at random to train on."""

from __future__ import annotations

import numpy as np

from tritllm.errors import TritError

HELD_BACK_TOKENS = 8192  # at most: a mean over them tells differences of a few per cent
HELD_BACK_SHARE = 0.1  # of the text, at most


class TrainingWindows:
    """Windows of `context` tokens; none that is drawn overlaps one that is held back.

    held_back: int64 [n, context], spread evenly over the text.

    Raises TritError for a text too short to hold back a window and train on the rest.
    """

    def __init__(self, ids: np.ndarray, context: int, seed: int) -> None:
        """ids: int64 [tokens], the text; seed: of the windows drawn."""
        count = min(HELD_BACK_TOKENS, int(len(ids) * HELD_BACK_SHARE)) // context
        count = max(count, 1)
        if len(ids) < (count + 1) * context:
            raise TritError(
                f"the text has {len(ids)} tokens, too few to train on: one window of {context} to "
                f"train on and one to judge by need {2 * context}; give a longer text"
            )
        self._ids, self._context, self._seed = ids, context, seed
        room = len(ids) - count * context  # for the stretches before each held-back window
        ends = [room * (i + 1) // count for i in range(count)]
        begins = [end + i * context for i, end in enumerate(ends)]
        self.held_back = np.stack([ids[begin : begin + context] for begin in begins])
        # The places a window can begin at: runs of places, and how many stand before each run.
        self._first = np.array([0, *(begin + context for begin in begins)])
        lengths = np.array([*begins, len(ids)]) - self._first - context + 1
        self._before = np.cumsum([0, *np.maximum(lengths, 0)])

    def drawn(self, step: int, count: int) -> np.ndarray:
        """int64 [count, context] for a step; the same for the same seed, text and step."""
        random = np.random.default_rng([self._seed, step])
        place = random.integers(self._before[-1], size=count)
        run = np.searchsorted(self._before, place, side="right") - 1
        begin = self._first[run] + place - self._before[run]
        return self._ids[begin[:, None] + np.arange(self._context)]
