"""Tokens for a streamer that was written for one token at a time."""

from __future__ import annotations

from typing import Any

import torch


class OneByOne:
    """A streamer that hands a verified draft's tokens on one at a time, the prompt as it comes."""

    def __init__(self, streamer: Any) -> None:
        self._streamer, self._prompt_seen = streamer, False

    def put(self, value: torch.Tensor) -> None:
        """Called by generate: the prompt, then [1, n] or [n] new tokens."""
        if not self._prompt_seen:
            self._prompt_seen = True
            self._streamer.put(value)
            return
        for token in value.reshape(-1, 1):
            self._streamer.put(token)

    def end(self) -> None:
        """Called by generate when it is done."""
        self._streamer.end()
