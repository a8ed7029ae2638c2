"""Perplexity, and distance from the float model, on one text under one fixed protocol.

Protocol: the text is tokenized whole, without special tokens, and cut into windows of `context`
tokens that do not overlap (a last, shorter one is used too). Every token of a window but its first
is predicted from those before it in the window. Perplexity is exp of the mean negative
log-likelihood over all predictions; the divergence is the mean over the same predictions of
KL(float || quantized), in nats; agreement is the share of predictions with the same first choice.
Logits are taken to float32 before the softmax.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Scores:
    """Of one model on the text. The float model itself has divergence 0 and agreement 1."""

    perplexity: float
    mean_kl: float
    agreement: float
    predictions: int


@torch.inference_mode()
def compare(
    reference: Any,
    candidates: Mapping[str, Any],
    token_ids: Sequence[int],
    *,
    context: int = 256,
    batch: int = 8,
) -> dict[str, Scores]:
    """Score causal language models of transformers against a float reference.

    Args:
        reference: the float model; scored too, under the name "float".
        candidates: models by name, with the reference's vocabulary.
        token_ids: the text.
        context: tokens a window, at least 2.
        batch: windows a forward pass.

    Raises ValueError for a text of fewer than two tokens.
    """
    if len(token_ids) < 2:
        raise ValueError("the text has fewer than two tokens")
    models = {"float": reference, **candidates}
    loss = dict.fromkeys(models, 0.0)
    divergence = dict.fromkeys(models, 0.0)
    agreed = dict.fromkeys(models, 0)
    predictions = 0
    for windows in _batches(torch.tensor(token_ids), context, batch):
        targets = windows[:, 1:]
        predictions += targets.numel()
        expected = None
        for name, model in models.items():
            log_p = torch.log_softmax(model(input_ids=windows).logits[:, :-1].float(), dim=-1)
            if expected is None:
                expected = log_p
            loss[name] -= log_p.gather(-1, targets.unsqueeze(-1)).double().sum().item()
            divergence[name] += (expected.exp() * (expected - log_p)).double().sum().item()
            agreed[name] += int((expected.argmax(-1) == log_p.argmax(-1)).sum())
    return {
        name: Scores(
            math.exp(loss[name] / predictions),
            divergence[name] / predictions,
            agreed[name] / predictions,
            predictions,
        )
        for name in models
    }


def _batches(ids: torch.Tensor, context: int, batch: int) -> list[torch.Tensor]:
    whole = len(ids) // context
    windows = ids[: whole * context].reshape(whole, context)
    batches = list(windows.split(batch)) if whole else []
    rest = ids[whole * context :]
    return [*batches, rest.unsqueeze(0)] if len(rest) >= 2 else batches
