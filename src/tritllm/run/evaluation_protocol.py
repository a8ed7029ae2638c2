"""The protocol of an evaluation: how a text becomes predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tritllm.errors import TritError
from tritllm.evaluation.corpus import Window, bos_token, read_dataset, read_text, tokenize
from tritllm.evaluation.corpus import windows as cut_windows
from tritllm.run.evaluated_model import EvaluatedModel, activations
from tritllm.run.loading import load_tokenizer
from tritllm.version import __version__

CONTEXT = 512


@dataclass(frozen=True)
class EvaluationProtocol:
    """How the text became predictions: figures of two runs compare where these are equal.

    bos: the token that began every window, or None. predictions: how many tokens were predicted.
    activations: what packed layers computed with. reference_logits: "side by side" in float32, or
    "cached" in 16 bits.
    """

    text: str
    text_sha256: str
    tokens: int
    context: int
    stride: int
    bos: int | None
    windows: int
    predictions: int
    dtype: str
    device: str
    activations: str
    reference_logits: str
    versions: Mapping[str, str]


def read_protocol(
    base: EvaluatedModel,
    text: str | Path | None,
    dataset: str | None,
    context: int | None,
    stride: int | None,
    bos: str,
    windows: int | None,
    dtype: str,
    device: str,
    cached: bool,
) -> tuple[EvaluationProtocol, list[Window]]:
    """Read the text and cut it into windows; of the model, config and tokenizer are read.

    Arguments are those of `evaluate`; cached: the reference's logits come from a cache.

    Raises TritError for a text that is none, and for windows that cannot be.
    """
    import torch
    import transformers

    source = read_text(text) if text is not None else read_dataset(dataset or "")
    tokenizer = load_tokenizer(base.path)
    token = bos_token(tokenizer, bos)
    limit = getattr(base.config().get_text_config(), "max_position_embeddings", None)
    longest = limit if isinstance(limit, int) and limit > 0 else None
    if context is None:
        context = min(CONTEXT, longest or CONTEXT)
    elif longest and context > longest:
        raise TritError(f"--context {context}: the model's context is {longest} tokens")
    corpus = tokenize(source, tokenizer)
    cut = cut_windows(corpus, context, stride=stride, bos=token)[:windows]
    protocol = EvaluationProtocol(
        text=source.name,
        text_sha256=source.sha256,
        tokens=len(corpus.ids),
        context=context,
        stride=stride or context - (token is not None),
        bos=token,
        windows=len(cut),
        predictions=sum(window.predictions for window in cut),
        dtype=dtype,
        device=device,
        activations=activations(),
        reference_logits="cached" if cached else "side by side",
        versions={
            "tritllm": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    )
    return protocol, cut
