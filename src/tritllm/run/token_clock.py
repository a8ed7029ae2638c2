"""What was generated and how fast: a streamer for `model.generate`, and the measurement."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tritllm.errors import TritError

if TYPE_CHECKING:
    import torch

    from tritllm.integrations.transformers.drafting.draft import DraftReport

_KEPT_TOKENS, _MOST_TOKENS = 32, 96  # decoded again for every new one


@dataclass(frozen=True)
class Generation:
    """What was generated, and its cost. Prefill ends with the first new token.

    context_full: the length of the model's context, where that ended the text. draft: what drafts
    brought, where they were asked for.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    context_full: int | None = None
    draft: DraftReport | None = None

    @property
    def prefill_speed(self) -> float:
        """Prompt tokens a second."""
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode_speed(self) -> float | None:
        """New tokens a second after the first; None where there is only one."""
        return (self.new_tokens - 1) / self.decode_seconds if self.new_tokens > 1 else None


class TokenClock:
    """A streamer for `model.generate`: passes text on and notes when tokens came.

    Text is passed on up to its last space or line end, for a later token may change a word's bytes;
    the rest comes with the next word, or at the end.
    """

    def __init__(self, tokenizer: Any = None, on_text: Callable[[str], None] | None = None) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._tokens: list[int] = []
        self._printed = 0
        self._prompt_seen = False
        self._times: list[float] = []
        self._started = time.perf_counter()

    def put(self, value: torch.Tensor) -> None:
        """Called by generate with the prompt's tokens first, then with every new one."""
        if not self._prompt_seen:
            self._prompt_seen = True
            self._started = time.perf_counter()
            return
        self._times.append(time.perf_counter())
        if self._on_text is not None:
            self._tokens += value.reshape(-1).tolist()
            text = self._text()
            self._emit(text, max(text.rfind(" "), text.rfind("\n")) + 1)
            self._forget(text)

    def end(self) -> None:
        """Called by generate when it is done."""
        if self._on_text is not None:
            text = self._text()
            self._emit(text, len(text))

    def result(self, text: str, prompt_tokens: int) -> Generation:
        """The measurement, with the whole text."""
        if not self._times:
            raise TritError("the model generated nothing; give a larger --max-new-tokens")
        first, last = self._times[0], self._times[-1]
        return Generation(
            text, prompt_tokens, len(self._times), first - self._started, last - first
        )

    def _text(self) -> str:
        """That of the tokens which are kept; all of it up to `_printed` was passed on."""
        return self._decode(self._tokens)

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _forget(self, text: str) -> None:
        """Drop early tokens where the others' text is the end of all the text, so that a token of
        a long text costs no more than one of a short.
        """
        if len(self._tokens) <= _MOST_TOKENS:
            return
        kept = self._tokens[-_KEPT_TOKENS:]
        end = self._decode(kept)
        begin = len(text) - len(end)
        if end and text.endswith(end) and begin <= self._printed:
            self._tokens, self._printed = kept, self._printed - begin

    def _emit(self, text: str, upto: int) -> None:
        if self._on_text is not None and upto > self._printed:
            self._on_text(text[self._printed : upto])
            self._printed = upto
