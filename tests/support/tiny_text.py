"""A text of random letters, and a tokenizer of single bytes for models with 96 tokens."""

from __future__ import annotations

import random
from pathlib import Path

import tokenizers
import transformers

from tritllm.evaluation.corpus import Text, read_text

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def write_tokenizer(folder: Path, **special: str) -> None:
    """Save it into a model's folder. Token 3 + n is the n-th letter."""
    words = ["<pad>", "<bos>", "<eos>", *LETTERS, "\u0120"]
    bytewise = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=[])
    )
    bytewise.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = tokenizers.decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=bytewise, **special).save_pretrained(
        folder
    )


def write_text(path: Path, letters: int = 700, seed: int = 5) -> Text:
    """A text of so many tokens."""
    path.write_text("".join(random.Random(seed).choices(LETTERS + " ", k=letters)), "utf-8")
    return read_text(path)
