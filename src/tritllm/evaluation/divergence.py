"""Perplexity, and distance from a reference model, on windows of one text. Needs torch.

Every token of a window from its `first` on is predicted from those before it in the window. Logits
are taken to float32 before the softmax; KL(reference || model) is the sum over the whole
vocabulary, never over a part of it. Beside the models, at most two batches of logits and some
hundred megabytes are in memory, whatever the text's length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch

from tritllm.errors import TritError
from tritllm.evaluation.corpus import Corpus, Window, windows
from tritllm.evaluation.token_scores import TokenScores, joined

BATCH = 8
_BATCH_LOGITS = 1 << 26  # of a default batch: 256 MiB in float32
_CHUNK_LOGITS = 1 << 24  # float32 log-probabilities that are made at a time: 64 MiB
_RULED_OUT = 1e-16  # a probability that adds nothing to a divergence


class WindowLogits(Protocol):
    """What the reference predicts in one window."""

    def chunk(
        self, rows: slice, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of some of the predictions: log-probabilities, -ln p of the targets, most likely tokens.

        float32 [rows, vocabulary], float32 [rows], int64 [rows].
        """

    @property
    def vocabulary(self) -> int:
        """The number of logits of a prediction."""


class KnownReference(Protocol):
    """A reference's logits that need not be computed again, by number of the window."""

    def __len__(self) -> int:
        """How many windows it knows."""

    def __getitem__(self, index: int, /) -> WindowLogits:
        """The logits of one window."""


@dataclass(frozen=True)
class ComputedLogits:
    """Logits as a model gave them, [predictions, vocabulary] in any float dtype."""

    logits: torch.Tensor

    def chunk(
        self, rows: slice, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `WindowLogits.chunk`."""
        log_p = torch.log_softmax(self.logits[rows].float(), dim=-1)
        nll = -log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return log_p, nll, log_p.argmax(-1)

    @property
    def vocabulary(self) -> int:
        """As `WindowLogits.vocabulary`."""
        return self.logits.shape[-1]


@dataclass(frozen=True)
class Measured:
    """Scores of the candidates by name; the reference's own -ln p of every predicted token."""

    candidates: dict[str, TokenScores]
    reference_nll: np.ndarray[Any, np.dtype[np.float64]]

    @property
    def reference_perplexity(self) -> float:
        """Of the reference."""
        return math.exp(self.reference_nll.mean())


def kl_between(
    reference: Any, model: Any, cut: Sequence[Window], *, batch: int | None = None
) -> TokenScores:
    """Score one causal language model in memory beside another: `.mean_kl` is the divergence.

    Args:
        reference: the model to compare with, or a `KnownReference` of the same windows: the
            result of `remember`, which pays where many models have one reference.
        model: the model, with the reference's vocabulary.
        cut: windows of a text, as `corpus.windows` gives them.
        batch: windows a forward pass; by default 8, fewer where their logits take 256 MiB.

    Raises TritError as `measure` does.
    """
    return measure(reference, {"the model": model}, cut, batch=batch).candidates["the model"]


@torch.inference_mode()
def measure(
    reference: Any,
    candidates: Mapping[str, Any],
    cut: Sequence[Window],
    *,
    batch: int | None = None,
    on_windows: Callable[[int], None] | None = None,
) -> Measured:
    """Score models beside a reference, window by window, all in memory together.

    Args:
        reference: the model to compare with, or a `KnownReference` of the same windows.
        candidates: models by name.
        cut: windows of a text.
        batch: windows a forward pass; by default 8, fewer where their logits take 256 MiB.
        on_windows: called with the number of windows that are done.

    Raises TritError for logits that are not finite, named by model and window, and for a model
    whose vocabulary is not the reference's.
    """
    known = not callable(reference)
    if known and len(reference) != len(cut):
        raise ValueError(f"a reference of {len(reference)} windows for {len(cut)}")
    scores: dict[str, list[TokenScores]] = {name: [] for name in candidates}
    reference_nll: list[np.ndarray[Any, np.dtype[np.float64]]] = []
    for numbers, computed in batches(None if known else reference, cut, batch):
        expected: list[WindowLogits] = (
            [reference[n] for n in numbers] if computed is None else [*computed]
        )
        for name, model in candidates.items():
            scores[name] += _scores_of(model, name, numbers, expected, cut)
        if candidates:
            reference_nll += [part.reference_nll for part in scores[name][-len(numbers) :]]
        else:
            for n, logits in zip(numbers, expected, strict=True):
                reference_nll.append(_nll(logits, cut[n]))
                _check_finite(reference_nll[-1], "the reference", n)
                del logits
        del computed, expected  # before the next batch takes as much memory
        if on_windows:
            on_windows(numbers[-1] + 1)
    return Measured(
        {name: joined(parts) for name, parts in scores.items()}, np.concatenate(reference_nll)
    )


def _scores_of(
    model: Any,
    name: str,
    numbers: Sequence[int],
    expected: Sequence[WindowLogits],
    cut: Sequence[Window],
) -> list[TokenScores]:
    """A model's scores in each window of a batch."""
    found = window_logits(model, [cut[n] for n in numbers])
    return [
        _score(e, logits, cut[n], name, n)
        for n, e, logits in zip(numbers, expected, found, strict=True)
    ]


def batches(
    model: Any | None, cut: Sequence[Window], batch: int | None
) -> Iterator[tuple[list[int], list[ComputedLogits] | None]]:
    """Numbers of consecutive windows of equal length, and the model's logits in them.

    Without a model the logits are None. How many windows a batch has by default follows from the
    first window's logits; without a model it is one.
    """
    size = batch or (1 if model is None else None)
    for _, run in groupby(range(len(cut)), key=lambda n: len(cut[n].ids)):
        numbers = list(run)
        while numbers:
            taken, numbers = numbers[: size or 1], numbers[size or 1 :]
            logits = None if model is None else window_logits(model, [cut[n] for n in taken])
            if size is None and logits is not None:
                whole = logits[0].vocabulary * len(cut[taken[0]].ids)
                size = min(BATCH, max(1, _BATCH_LOGITS // whole))
            yield taken, logits
            del logits  # before the next take as much memory


@torch.inference_mode()
def window_logits(model: Any, cut: Sequence[Window]) -> list[ComputedLogits]:
    """A model's logits for the predictions of windows of equal length, in one forward pass."""
    ids = torch.from_numpy(np.stack([window.ids for window in cut]))
    logits = model(input_ids=ids.to(getattr(model, "device", "cpu"))).logits
    return [ComputedLogits(logits[i, w.first - 1 : -1]) for i, w in enumerate(cut)]


def chunks(vocabulary: int, predictions: int) -> Iterator[slice]:
    """Rows whose log-probabilities are made at a time, so that they take bounded memory."""
    rows = max(1, _CHUNK_LOGITS // vocabulary)
    for start in range(0, predictions, rows):
        yield slice(start, min(start + rows, predictions))


def targets_of(window: Window) -> torch.Tensor:
    """The tokens that a window predicts, int64 [predictions]."""
    return torch.from_numpy(np.ascontiguousarray(window.ids[window.first :]))


def _nll(logits: WindowLogits, window: Window) -> np.ndarray[Any, np.dtype[np.float64]]:
    targets = targets_of(window)
    parts = [
        logits.chunk(rows, targets[rows])[1] for rows in chunks(logits.vocabulary, len(targets))
    ]
    return torch.cat(parts).double().cpu().numpy()


def _score(
    expected: WindowLogits, found: ComputedLogits, window: Window, name: str, number: int
) -> TokenScores:
    if found.vocabulary != expected.vocabulary:
        raise TritError(
            f"{name}: a vocabulary of {found.vocabulary}, but the reference has "
            f"{expected.vocabulary}; only models with one vocabulary can be compared"
        )
    targets = targets_of(window).to(found.logits.device)
    parts = []
    for rows in chunks(found.vocabulary, len(targets)):
        log_p, reference_nll, reference_top = (
            part.to(found.logits.device) for part in expected.chunk(rows, targets[rows])
        )
        log_q, nll, top = found.chunk(rows, targets[rows])
        p = log_p.exp()
        # A token that the reference rules out adds nothing, even if the model rules it out, too.
        kl = torch.where(p > _RULED_OUT, p * (log_p - log_q), 0.0).double().sum(-1)
        parts.append(
            TokenScores(
                nll.double().cpu().numpy(),
                reference_nll.double().cpu().numpy(),
                kl.cpu().numpy(),
                (top == reference_top).cpu().numpy(),
            )
        )
    scores = joined(parts)
    _check_finite(scores.reference_nll, "the reference", number)
    _check_finite(scores.nll + scores.kl, name, number)
    return scores


def _check_finite(values: np.ndarray[Any, np.dtype[np.float64]], name: str, number: int) -> None:
    if np.isfinite(values).all():
        return
    what = "NaN or infinite logits" if np.isnan(values).any() else "an infinite divergence"
    raise TritError(
        f"{name}: {what} in window {number}, prediction {int(np.isfinite(values).argmin())}; "
        "the model is broken, or overflows in this --dtype"
    )


@dataclass(frozen=True)
class Scores:
    """Of one model on the text. The float model itself has divergence 0 and agreement 1."""

    perplexity: float
    mean_kl: float
    agreement: float
    predictions: int


def compare(
    reference: Any,
    candidates: Mapping[str, Any],
    token_ids: Sequence[int],
    *,
    context: int = 256,
    batch: int = BATCH,
) -> dict[str, Scores]:
    """Score models beside a float reference in windows that do not overlap, without BOS.

    Args:
        reference: the float model; scored too, under the name "float".
        candidates: models by name, with the reference's vocabulary.
        token_ids: the text.
        context: tokens a window, at least 2.
        batch: windows a forward pass.

    Raises ValueError for a text of fewer than two tokens, and as `measure` does.
    """
    if len(token_ids) < 2:
        raise ValueError("the text has fewer than two tokens")
    corpus = Corpus("the text", "", np.asarray(token_ids, dtype=np.int64))
    measured = measure(reference, candidates, windows(corpus, context), batch=batch)
    n = len(measured.reference_nll)
    return {
        "float": Scores(measured.reference_perplexity, 0.0, 1.0, n),
        **{
            name: Scores(scores.perplexity, scores.mean_kl, scores.agreement, n)
            for name, scores in measured.candidates.items()
        },
    }
