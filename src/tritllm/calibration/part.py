"""A part of a model that streams pass through: a block, or what follows the last block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tritllm.calibration.activations import Activations
from tritllm.calibration.stages import Structure
from tritllm.quantizer.matrices import SourceMatrix


@dataclass(frozen=True)
class Part:
    """A part that is filled.

    name: of the root in the model; "" for the whole model, of which what follows the blocks runs.
    matrices: what is quantized in it, by the name below the root.
    call: runs it for windows that begin at an index, on hidden states [windows, tokens, width].
    """

    name: str
    root: nn.Module
    matrices: dict[str, SourceMatrix]
    structure: Structure
    call: Callable[[int, torch.Tensor], Any]


@dataclass(frozen=True)
class Batches:
    """How a stream is cut: its windows, and how many of them run at once."""

    windows: int
    context: int
    at_once: int

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(first window, number of windows) of each batch, in order."""
        for start in range(0, self.windows, self.at_once):
            yield start, min(self.at_once, self.windows - start)

    @property
    def tokens(self) -> int:
        """Rows of a stream."""
        return self.windows * self.context

    def rows(self, start: int, windows: int) -> tuple[int, int]:
        """The rows of a stream, first and behind the last, of a batch."""
        return start * self.context, (start + windows) * self.context

    def hidden(
        self, stream: Activations, start: int, windows: int, device: torch.device
    ) -> torch.Tensor:
        """Hidden states [windows, context, width] of a batch."""
        rows = stream.get(*self.rows(start, windows), device)
        return rows.reshape(windows, self.context, -1)
