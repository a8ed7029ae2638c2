"""How often the whole model accepts a drafted token."""

from __future__ import annotations

from bisect import bisect

_EDGES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # of the draft's probability of its own token
_PRIOR_WEIGHT = 2.0  # tokens
_KEPT = 0.995  # of what was seen, at every new token: texts change


class Acceptance:
    """Rates of acceptance, by how sure the draft was of its token.

    Until tokens have been seen, a rate is `prior` where the draft is sure, and as much less as the
    draft is less sure.
    """

    def __init__(self, prior: float = 0.9) -> None:
        sure = (*_EDGES, 1.0)
        self._offered = [_PRIOR_WEIGHT] * len(sure)
        self._accepted = [_PRIOR_WEIGHT * prior * edge for edge in sure]
        self._mean_offered, self._mean_accepted = _PRIOR_WEIGHT, _PRIOR_WEIGHT * prior

    def add(self, confidence: float, accepted: bool) -> None:
        """Note a verified token. confidence: the draft's probability of it."""
        place = bisect(_EDGES, confidence)
        self._offered[place] = self._offered[place] * _KEPT + 1
        self._accepted[place] = self._accepted[place] * _KEPT + accepted
        self._mean_offered = self._mean_offered * _KEPT + 1
        self._mean_accepted = self._mean_accepted * _KEPT + accepted

    def of(self, confidence: float) -> float:
        """The rate where the draft was so sure, 0..1."""
        place = bisect(_EDGES, confidence)
        return self._accepted[place] / self._offered[place]

    @property
    def mean(self) -> float:
        """The rate of all tokens."""
        return self._mean_accepted / self._mean_offered
