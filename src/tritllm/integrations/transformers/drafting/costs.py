"""What drafting and verifying take on this machine, measured as they happen."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

_RECENT = 15  # measurements; of these the median, for other processes disturb some
_GUESSED_SLOPE = 0.1  # of a step, for another token in it, until two lengths have been measured


class Costs:
    """Seconds for a drafted token, and for a verification of so many tokens in one step.

    planes: those of the draft; 0 where a second model drafts.
    """

    def __init__(self) -> None:
        self._drafted: dict[int, deque[float]] = {}
        self._verified: dict[int, deque[float]] = {}

    def add_drafted(self, planes: int, seconds: Iterable[float]) -> None:
        """Note drafted tokens."""
        self._drafted.setdefault(planes, deque(maxlen=_RECENT)).extend(seconds)

    def add_verified(self, tokens: int, seconds: float) -> None:
        """Note a verification of so many tokens; 1 is a step without a draft."""
        self._verified.setdefault(tokens, deque(maxlen=_RECENT)).append(seconds)

    def drafted(self, planes: int) -> float:
        """Seconds for a drafted token; 0 until one was measured."""
        return median(self._drafted[planes]) if self._drafted.get(planes) else 0.0

    def times_measured(self, tokens: int) -> int:
        """How many recent verifications of so many tokens there are."""
        return len(self._verified.get(tokens, ()))

    def verification(self, tokens: int) -> float:
        """Seconds for a verification of so many tokens: measured, or by the nearest and a slope; 0
        until any was measured.
        """
        if not self._verified:
            return 0.0
        nearest = min(self._verified, key=lambda known: abs(known - tokens))
        return median(self._verified[nearest]) + (tokens - nearest) * self.another

    @property
    def another(self) -> float:
        """Seconds that another token adds to a verification: the slope of a straight line through
        the medians, each of the weight of its measurements.
        """
        if not self._verified:
            return 0.0
        points = [(tokens, median(own), len(own)) for tokens, own in self._verified.items()]
        weight = sum(count for _, _, count in points)
        middle = sum(tokens * count for tokens, _, count in points) / weight
        mean = sum(seconds * count for _, seconds, count in points) / weight
        spread = sum(count * (tokens - middle) ** 2 for tokens, _, count in points)
        if not spread:
            return _GUESSED_SLOPE * mean
        together = sum(count * (t - middle) * (seconds - mean) for t, seconds, count in points)
        return max(0.0, together / spread)
