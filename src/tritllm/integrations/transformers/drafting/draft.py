"""What a model's tokens are drafted with, and what came of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from transformers import GenerationMixin

from tritllm.errors import TritError
from tritllm.integrations.transformers.drafting.pace import PLAIN_ROUNDS, Pace
from tritllm.integrations.transformers.drafting.share import share_ends
from tritllm.integrations.transformers.layers import layers_of_planes
from tritllm.ops.planes import reading_planes

AUTO, PLANES = "auto", "planes="
# Acceptance by the planes that are read, of models encoded at depth 4: only to choose among them
# before any was tried for long.
_EXPECTED = {1: 0.6, 2: 0.9, 3: 0.97}


@dataclass(frozen=True)
class DraftReport:
    """What drafts brought.

    drafted_by: what drafts, in words. rounds: drafts that were verified. drafted, accepted,
    rejected: tokens; those after a rejected one are neither accepted nor rejected. gain: speed of
    these rounds over that of steps without a draft, None where none was measured. off: why nothing
    is drafted any more; None where it is.
    """

    drafted_by: str
    rounds: int
    drafted: int
    accepted: int
    rejected: int
    gain: float | None
    off: str | None

    @property
    def acceptance(self) -> float | None:
        """The share of accepted tokens; None where none was drafted."""
        tried = self.accepted + self.rejected
        return self.accepted / tried if tried else None

    @property
    def length(self) -> float | None:
        """Tokens a draft; None where there was none."""
        return self.drafted / self.rounds if self.rounds else None

    def __str__(self) -> str:
        """One line for people."""
        if self.acceptance is None:
            return f"no drafts{'' if self.off is None else f': {self.off}'}"
        gain = "" if self.gain is None else f", {self.gain:.2f} times the speed without"
        off = "" if self.off is None else f"; {self.off}"
        return (
            f"drafts by {self.drafted_by}: {self.length:.1f} tokens each, "
            f"{100 * self.acceptance:.0f} % accepted{gain}{off}"
        )


class Draft:
    """Drafts for `generate(..., draft=...)` of a packed model, by fewer of its own planes or by a
    second model of the same vocabulary.

    What it learns of costs and acceptance it keeps from one call of generate to the next. It is
    used by one call at a time.

    Args:
        model: the packed model that generates.
        source: "planes=N" for N of its own planes; "auto" for the number of own planes that pays
            most here, or none, which it is at once where trying would cost the memory with planes
            together (`TritLinear.planes_together`); or a model, such as `load_model` gives, which
            then shares the first one's embeddings and output layer where they hold the same
            numbers.
        say: called with a line when "auto" gives up; prints to standard error by default.

    Raises TritError for planes that the model has not, or all it has, and for a model of another
    vocabulary.
    """

    def __init__(
        self, model: Any, source: str | Any = AUTO, *, say: Callable[[str], None] | None = None
    ) -> None:
        self.model, self.other = model, None
        self._say = say or (lambda line: print(line, file=sys.stderr))
        self._layers = layers_of_planes(model)
        self._most = max((layer.planes for layer in self._layers), default=0)
        self._choices: list[int] = []  # not tried yet
        self._why_off: str | None = None
        planes = 0
        if source == AUTO:
            self._choices = list(range(self._most - 1, 0, -1))
            planes = self._choices[0] if self._choices else 0
        elif isinstance(source, str):
            planes = self._checked_planes(source)
        else:
            self.other = source
            self._check_other()
            share_ends(model, source)
        self.pace = Pace(planes, may_stop=source == AUTO)
        self._rounds = self._drafted = self._accepted = self._rejected = 0
        if source != AUTO:
            return
        if not self._choices:
            self._turn_off(f"a model that reads {self._most} planes has no fewer to draft with")
        elif any(layer.planes_together for layer in self._layers):
            self._turn_off(
                "to read fewer planes this machine needs memory that is larger and slower to read "
                f"whole; {PLANES}N takes it"
            )

    @property
    def config(self) -> Any:
        """Of the model that drafts; transformers compares its vocabulary."""
        return (self.other or self.model).config

    @property
    def report(self) -> DraftReport:
        """What came of it until now."""
        known = self._rounds and self.pace.costs.times_measured(1) >= PLAIN_ROUNDS
        return DraftReport(
            self._name, self._rounds, self._drafted, self._accepted, self._rejected,
            self.pace.gain if known else None, self._why_off,
        )  # fmt: skip

    def reading(self) -> AbstractContextManager[None]:
        """Within it the model that drafts reads the planes to draft with."""
        if self.other is not None:
            return nullcontext()
        return reading_planes(self._layers, self.pace.planes)

    def add_round(
        self,
        confidences: Sequence[float],
        kept: int,
        draft_seconds: float,
        verify_seconds: float,
    ) -> None:
        """Note a verification, and decide on what follows from it.

        confidences: the draft's probability of each of its tokens. kept: the accepted ones.
        """
        pace, count = self.pace, len(confidences)
        for place, confidence in enumerate(confidences[: kept + 1]):
            pace.acceptance.add(confidence, place < kept)
        pace.add_round(count, kept + 1, draft_seconds, verify_seconds)
        if not count:
            return
        self._rounds, self._drafted = self._rounds + 1, self._drafted + count
        self._accepted += kept
        self._rejected += kept < count
        if self._choices:
            self._try_next()
        elif pace.off and self._why_off is None:
            rate = self.report.acceptance or 0.0
            self._turn_off(
                f"{self._name} gave {pace.gain:.2f} times the speed without, "
                f"{100 * rate:.0f} % accepted"
            )

    def _try_next(self) -> None:
        """One draft by each choice of planes tells what its tokens cost; then the best is taken."""
        self._choices.pop(0)
        if self._choices:
            self.pace.planes = self._choices[0]
            return
        pace = self.pace
        rates = {
            planes: pace.expected_rate(planes, _EXPECTED[planes])
            for planes in range(1, self._most)
            if pace.costs.drafted(planes)
        }
        best = max(rates, key=rates.__getitem__, default=self._most - 1)
        pace.choose(best, _EXPECTED[best])

    @property
    def _name(self) -> str:
        if self.other is not None:
            return str(self.other.config.name_or_path) or "a second model"
        return f"{self.pace.planes} of {self._most} planes"

    def _turn_off(self, why: str) -> None:
        self.pace.off, self._why_off = True, f"drafting is off: {why}"
        self._say(self._why_off)

    def _checked_planes(self, source: str) -> int:
        number = source.removeprefix(PLANES)
        if number == source or not number.isdecimal():
            raise TritError(f"draft {source!r:.60} is not {AUTO}, {PLANES}N or a packed model")
        planes = int(number)
        if not 1 <= planes < self._most:
            fewer = f"1..{self._most - 1}" if self._most > 1 else "fewer"
            raise TritError(
                f"draft {source:.20}: the model reads {self._most} planes, a draft takes {fewer}"
            )
        return planes

    def _check_other(self) -> None:
        if not isinstance(self.other, GenerationMixin):
            raise TritError(f"draft {type(self.other).__name__} is not a model that generates text")
        ours, its = (
            model.config.get_text_config().vocab_size for model in (self.model, self.other)
        )
        if ours != its:
            raise TritError(f"draft: its vocabulary has {its} tokens, the model's {ours}")
