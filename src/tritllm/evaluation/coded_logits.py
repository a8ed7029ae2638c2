"""A reference's logits in 16 bits, so that it need not be computed again for every model.

The logits of a prediction are rounded to 65,536 even levels between the largest and the smallest
(or 40 nats below the largest: e^-40 of all the probability is below what float32 holds). The step
is at most 40 / 65,535 = 6.1e-4 nats. Rounding errors are even and independent, so a divergence is
too large by half their variance on average, at most 1.6e-8 nats, and the mean of n has a random
error of at most 6.1e-4 / sqrt(12) times the standard deviation of ln(p / q), sqrt(2 KL), over
sqrt(n). The text's own token and the
most likely token are stored beside, exactly: perplexity, change of probability and agreement are
those of the logits themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tritllm.evaluation.corpus import Window
from tritllm.evaluation.divergence import ComputedLogits, batches, chunks, targets_of

LEVELS = 65536
DEPTH = 40.0  # nats below the largest logit that are told apart


@dataclass(frozen=True)
class CodedLogits:
    """The logits of one window's predictions: codes * step + lowest, up to a constant a prediction.

    codes: uint16 [predictions, vocabulary]. step: float32 [predictions]; the constant does not
    change a softmax and is left out. nll, top: float32 and int64 [predictions], exact.
    """

    codes: npt.NDArray[np.uint16]
    step: npt.NDArray[np.float32]
    nll: npt.NDArray[np.float32]
    top: npt.NDArray[np.int64]

    def chunk(
        self, rows: slice, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `WindowLogits.chunk`."""
        logits = torch.from_numpy(self.codes[rows].astype(np.float32))
        logits *= torch.from_numpy(self.step[rows]).unsqueeze(-1)
        return (
            torch.log_softmax(logits, dim=-1),
            torch.from_numpy(self.nll[rows]),
            torch.from_numpy(self.top[rows]),
        )

    @property
    def vocabulary(self) -> int:
        """As `WindowLogits.vocabulary`."""
        return self.codes.shape[-1]


def code(computed: ComputedLogits, window: Window) -> CodedLogits:
    """Round a model's logits in a window. NaN stays NaN in `nll`, where it is found."""
    targets = targets_of(window).to(computed.logits.device)
    parts = []
    for rows in chunks(computed.vocabulary, len(targets)):
        log_p, nll, top = computed.chunk(rows, targets[rows])
        highest = log_p.amax(-1, keepdim=True)
        lowest = torch.maximum(log_p.amin(-1, keepdim=True), highest - DEPTH)
        step = (highest - lowest) / (LEVELS - 1)
        codes = torch.where(step > 0, (log_p.maximum(lowest) - lowest) / step, 0.0)
        parts.append(
            (
                codes.nan_to_num().round().to(torch.int32).cpu().numpy().astype(np.uint16),
                step.squeeze(-1).cpu().numpy(),
                nll.cpu().numpy(),
                top.cpu().numpy(),
            )
        )
    codes, step, nll, top = (np.concatenate(column) for column in zip(*parts, strict=True))
    return CodedLogits(codes, step, nll, top)


def remember(model: Any, cut: Sequence[Window], *, batch: int | None = None) -> list[CodedLogits]:
    """A reference's logits in memory, 2 bytes each: a `KnownReference` for `kl_between`."""
    coded = []
    for numbers, computed in batches(model, cut, batch):
        coded += [code(c, cut[n]) for n, c in zip(numbers, computed or (), strict=True)]
    return coded
