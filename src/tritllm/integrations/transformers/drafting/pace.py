"""How long a draft is to be, and whether drafting pays at all."""

from __future__ import annotations

from tritllm.integrations.transformers.drafting.acceptance import Acceptance
from tritllm.integrations.transformers.drafting.costs import Costs

MOST_DRAFTED = 7  # with the token before them 8, which the native step takes at once
_FIRST_LENGTH = 3  # of drafts, until a rate is known; one less where that may turn out a loss
_KNOWN_ROUNDS = 4
_LONGER_EVERY = 8  # drafts; one is a token longer, for what was measured once may have changed
_KEPT = 0.97  # of the tokens and seconds behind the rate, at every round
PLAIN_ROUNDS = 3  # without a draft, first of all; then one in so many, for machines change
_PLAIN_EVERY = 32
_MAY_LOSE = 1.0  # steps without a draft
_MAY_LOSE_SHARE = 0.015  # and of all tokens
_CREDIT = 8.0  # at most so many steps that were gained count against later losses


class Pace:
    """Decides, from measured costs and acceptance, when a draft is long enough.

    Another drafted token is worth its time if the tokens it is expected to bring, by that time, are
    no fewer than generating brings on average (the rule that maximises the long-run rate of a
    renewal process). So the length follows the text, too: it ends where the draft gets unsure.

    Args:
        planes: that draft; 0 where a second model does.
        may_stop: give up, once and for all, where drafting loses time against not drafting: when
            the loss is more than a step and 1.5 % of all tokens' steps.
    """

    def __init__(self, planes: int, may_stop: bool) -> None:
        self.planes, self.off = planes, False
        self.costs, self.acceptance = Costs(), Acceptance()
        self._may_stop = may_stop
        self._rounds = self._drafted_rounds = self._length = 0
        self._tokens = self._seconds = 0.0  # behind the rate, decayed
        self._all_tokens = 0
        self._lost = 0.0  # seconds, against not drafting

    def drafts_now(self) -> bool:
        """Whether to draft in the round that begins."""
        self._rounds += 1
        if self.off:
            return False
        if not self._may_stop:
            return True
        first = self.costs.times_measured(1) < PLAIN_ROUNDS
        return not first and self._rounds % _PLAIN_EVERY != 0

    def goes_on(self, count: int, reached: float) -> bool:
        """Whether to draft another token after `count`, all accepted with probability `reached`."""
        if count >= MOST_DRAFTED:
            return False
        if self._drafted_rounds < _KNOWN_ROUNDS:
            return count < _FIRST_LENGTH - self._may_stop
        longer = self._drafted_rounds % _LONGER_EVERY == 0 and count <= self._length
        if longer and reached > 0.5:
            return True
        worth = reached * self.acceptance.mean
        return worth >= self.rate * (self._draft + self.costs.another)

    @property
    def rate(self) -> float:
        """Tokens a second that generating brings now, or would bring without drafts."""
        rate = self._tokens / self._seconds if self._seconds else 0.0
        plain = self.costs.verification(1) if self.costs.times_measured(1) else 0.0
        return max(rate, 1 / plain) if plain else rate

    @property
    def gain(self) -> float:
        """Speed of rounds with a draft over that of rounds without; 1 until both are known."""
        plain = self.costs.verification(1)
        return self._tokens / self._seconds * plain if self._seconds and plain else 1.0

    @property
    def _draft(self) -> float:
        return self.costs.drafted(self.planes)

    def choose(self, planes: int, acceptance: float) -> None:
        """Draft with other planes from now on, and expect such acceptance of them."""
        self.planes, self.acceptance = planes, Acceptance(acceptance)
        self._tokens = self._seconds = 0.0

    def expected_rate(self, planes: int, acceptance: float) -> float:
        """Tokens a second with drafts of the best length, at one rate of acceptance for all.

        A draft of k brings (1 - a^(k+1)) / (1 - a) tokens (Leviathan et al., 2023).
        """
        draft, step = self.costs.drafted(planes), self.costs.verification(1)
        return max(
            (1 - acceptance ** (k + 1))
            / (1 - acceptance)
            / (k * (draft + self.costs.another) + step)
            for k in range(1, MOST_DRAFTED + 1)
        )

    def add_round(
        self, drafted: int, new_tokens: int, draft_seconds: float, verify_seconds: float
    ) -> None:
        """Note a round: its draft's length, the tokens it brought, and what it took."""
        self.costs.add_verified(drafted + 1, verify_seconds)
        self._all_tokens += new_tokens
        if not drafted:
            return
        self._drafted_rounds, self._length = self._drafted_rounds + 1, drafted
        # By the medians, so that one disturbed measurement decides nothing.
        seconds = drafted * self._draft + self.costs.verification(drafted + 1)
        seconds = seconds or draft_seconds + verify_seconds
        self._tokens = self._tokens * _KEPT + new_tokens
        self._seconds = self._seconds * _KEPT + seconds
        if self._may_stop:
            step = self.costs.verification(1)
            self._lost = max(self._lost + seconds - new_tokens * step, -_CREDIT * step)
            self.off = self._lost > step * (_MAY_LOSE + _MAY_LOSE_SHARE * self._all_tokens)
