"""The windows of token ids that a model is calibrated on."""

from __future__ import annotations

from typing import Any

import transformers

from tritllm.errors import TritError, first_line
from tritllm.evaluation.corpus import Corpus, Ids, Text, bos_token, sample_windows, tokenize
from tritllm.quantizer.source import Source

TOKENS = 128 * 2048  # by default, or as many as the text has
CONTEXT = 2048  # by default, or as many as the model takes


def context_of(source: Source, context: int | None) -> int:
    """Tokens a window: what is asked for, or as many as the model takes, at most `CONTEXT`."""
    config = source.text_config
    most = config.get("max_position_embeddings") or config.get("n_positions") or CONTEXT
    if source.model_type in _OFFSET:
        most -= _OFFSET[source.model_type]
    if context is not None and not 2 <= context <= most:
        raise TritError(
            f"a calibration context of {context} is not 2..{most}, what the model takes"
        )
    return context or min(int(most), CONTEXT)


_OFFSET = {"roberta": 2}  # positions begin behind that of the padding token


def windows_of(
    source: Source, text: Text, tokens: int | None, context: int, seed: int
) -> tuple[Ids, bool]:
    """Windows int64 [windows, context] of a text, and whether each begins with the BOS token.

    Args:
        source: whose tokenizer is used, from its own folder or Hub id.
        text: to calibrate on.
        tokens: how many, rounded down to windows; None takes `TOKENS` or what the text has.
        context: tokens a window.
        seed: of the permutation of the windows, of which the first are taken.

    Raises TritError where the tokenizer is missing or does not know the text, and for a text with
    fewer tokens than are asked for, or than one window.
    """
    corpus, bos = corpus_of(source, text)
    if tokens is not None and tokens < context:
        raise TritError(f"--tokens {tokens} is less than one window of {context} tokens")
    count = (tokens or TOKENS) // context
    ids = sample_windows(corpus, context, count, seed=seed, bos=bos)
    if tokens is not None and len(ids) < count:
        raise TritError(
            f"{text.name}: too short, it has {len(corpus.ids)} tokens and {count} windows of "
            f"{context} are asked for; give a longer text, or --tokens {len(ids) * context}"
        )
    return ids, bos is not None


def corpus_of(source: Source, text: Text) -> tuple[Corpus, int | None]:
    """A text's token ids, and the BOS token that the tokenizer puts before a text, or None.

    Raises TritError where the tokenizer is missing or does not know the text.
    """
    tokenizer = _tokenizer(source)
    return tokenize(text, tokenizer), bos_token(tokenizer)


def _tokenizer(source: Source) -> Any:
    """The source's tokenizer."""
    where = getattr(source.files, "folder", source.files.name)
    try:
        return transformers.AutoTokenizer.from_pretrained(where, revision=source.files.revision)
    except Exception as error:  # whatever a tokenizer's own code raises
        raise TritError(
            f"{source.files.name}: no tokenizer that transformers can load ({first_line(error)}); "
            "calibrating needs one beside the weights"
        ) from None
