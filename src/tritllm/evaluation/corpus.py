"""A text as token ids, and the windows in which a model sees it: for measuring and calibrating.

Needs neither torch nor transformers: a tokenizer is passed in. A whole text is tokenized at once,
without special tokens, so that windows are cut from the same ids whatever their length.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tritllm.errors import TritError, first_line
from tritllm.extras import require

Ids = npt.NDArray[np.int64]
BOS_RULES = ("auto", "always", "never")
BETWEEN_ROWS = "\n\n"  # of a dataset, as transformers' guide to perplexity joins them
_MOST_UNKNOWN = 0.5


@dataclass(frozen=True)
class Text:
    """A text, where it came from, and the SHA-256 of its UTF-8 bytes in hexadecimal digits."""

    name: str
    content: str
    sha256: str


@dataclass(frozen=True)
class Corpus:
    """The token ids of a text.

    name, sha256: of the text. ids: int64 [tokens], without special tokens.
    """

    name: str
    sha256: str
    ids: Ids


@dataclass(frozen=True)
class Window:
    """What a model sees at once.

    ids: int64 [length], the BOS token included where there is one.
    first: ids[first:] are the tokens that count as predictions, each from all before it in the
        window; at least 1, less than length.
    """

    ids: Ids
    first: int

    @property
    def predictions(self) -> int:
        """How many tokens of the window are predicted."""
        return len(self.ids) - self.first


def read_text(path: str | Path, option: str = "--text") -> Text:
    """Read a file of UTF-8 text, byte for byte.

    option: of the command line that names the file, for messages.

    Raises TritError for a file that cannot be read, is empty or is not UTF-8.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise TritError(f"{path}: {error.strerror}; give a text with {option}") from None
    try:
        return _text(str(path), data.decode("utf-8"), data)
    except UnicodeDecodeError as error:
        raise TritError(
            f"{path}: not UTF-8 text (byte {error.start}); convert it, "
            f"or give another with {option}"
        ) from None


def read_dataset(name: str, split: str = "test") -> Text:
    """Read a dataset of the Hub, or of a local folder, with the library `datasets`.

    Args:
        name: "NAME[,CONFIG[,SPLIT[,COLUMN]]]", for example
            "Salesforce/wikitext,wikitext-2-raw-v1,test,text". An empty part takes its default:
            no config, `split`, the column "text". SPLIT may be a slice such as "train[:1000]".
        split: the split where the name has none.

    The rows are joined with an empty line. Raises TritError where `datasets` is missing, or there
    is no such dataset, split or column of text.
    """
    require("a dataset", "datasets", "datasets")
    import datasets

    parts = name.split(",")
    if len(parts) > 4:
        raise TritError(f"dataset {name}: not of the form NAME,CONFIG,SPLIT,COLUMN")
    repository, config, part, column = parts + [""] * (4 - len(parts))
    column = column or "text"
    try:
        rows = datasets.load_dataset(repository, config or None, split=part or split)
    except Exception as error:  # whatever the network or the library raises
        raise TritError(f"dataset {name}: {first_line(error)}") from error
    if column not in rows.column_names:
        columns = ", ".join(rows.column_names)
        raise TritError(f"dataset {name}: no column {column}; it has {columns}")
    values = rows[column]
    if not all(isinstance(value, str) for value in values):
        raise TritError(f"dataset {name}: column {column} does not hold text")
    content = BETWEEN_ROWS.join(values)
    return _text(name, content, content.encode("utf-8", "replace"))


def _text(name: str, content: str, data: bytes) -> Text:
    if not content.strip():
        raise TritError(f"{name}: an empty text; give another")
    return Text(name, content, hashlib.sha256(data).hexdigest())


def tokenize(text: Text, tokenizer: Any) -> Corpus:
    """The token ids of a text, without special tokens.

    Args:
        text: what to tokenize.
        tokenizer: of transformers.

    Raises TritError for a text most of which the tokenizer does not know.
    """
    listed = tokenizer(text.content, add_special_tokens=False, verbose=False)["input_ids"]
    ids = np.asarray(listed, dtype=np.int64)
    unknown = getattr(tokenizer, "unk_token_id", None)
    share = float(np.mean(ids == unknown)) if unknown is not None and len(ids) else 0.0
    if share <= _MOST_UNKNOWN:  # some tokenizers drop what they do not know
        kept = len("".join(tokenizer.decode(listed, skip_special_tokens=True).split()))
        share = max(share, 1 - kept / len("".join(text.content.split())))
    if share > _MOST_UNKNOWN:
        raise TritError(
            f"{text.name}: the model's tokenizer does not know {100 * share:.0f} % of it; "
            "give a text in the model's alphabet"
        )
    return Corpus(text.name, text.sha256, ids)


def bos_token(tokenizer: Any, rule: str = "auto") -> int | None:
    """The token that begins every window, or None.

    Args:
        tokenizer: of transformers.
        rule: "auto": the tokenizer's BOS token if it puts that before a text by itself; "always";
            "never".

    Raises TritError for another rule, and for "always" where the tokenizer has no BOS token.
    """
    if rule not in BOS_RULES:
        raise TritError(f"--bos {rule} is not one of {', '.join(BOS_RULES)}")
    token: int | None = tokenizer.bos_token_id
    if rule == "never":
        return None
    if rule == "always":
        if token is None:
            raise TritError("the tokenizer has no BOS token; use --bos auto")
        return token
    begins = tokenizer("a", verbose=False)["input_ids"][:1] == [token]
    return token if begins and token is not None else None


def windows(
    corpus: Corpus, context: int, *, stride: int | None = None, bos: int | None = None
) -> list[Window]:
    """Cut a text into windows, in order.

    Args:
        corpus: the text.
        context: tokens a window, the BOS token included; at least 2. The last may be shorter.
        stride: a window begins so many tokens after the one before it. By default windows do not
            overlap; where they do, a token counts in the first window in which it is predicted.
        bos: a token put before every window, or None. Without it no window predicts its first
            token.

    Raises TritError for a context or stride that is impossible, and for a text without a
    prediction.
    """
    least = 2
    if context < least:
        raise TritError(f"--context {context} is less than {least}")
    body = context - (bos is not None)
    stride = body if stride is None else stride
    if not 1 <= stride <= body:
        raise TritError(f"--stride {stride} is not 1..{body}, the tokens of a window")
    cut: list[Window] = []
    predicted = 0  # tokens of the text before this one are done with
    for start in range(0, len(corpus.ids), stride):
        ids = corpus.ids[start : start + body]
        first = max(predicted - start, 0)
        if bos is not None:
            ids, first = np.concatenate([[bos], ids]), first + 1
        window = Window(ids, max(first, 1))
        if window.predictions > 0:
            cut.append(window)
        predicted = start + body
        if predicted >= len(corpus.ids):
            break
    if not cut:
        raise TritError(
            f"{corpus.name}: too short, {len(corpus.ids)} tokens give nothing to predict; "
            "give a longer text"
        )
    return cut


def sample_windows(
    corpus: Corpus, context: int, count: int, *, seed: int = 0, bos: int | None = None
) -> Ids:
    """Whole windows of a text in a seeded order, int64 [windows, context]: for calibration.

    Args:
        corpus: the text.
        context: tokens a window, the BOS token included; at least 2.
        count: at most so many windows, drawn without repetition from those that do not overlap.
        seed: of NumPy's default generator, whose permutation of the windows is the order.
        bos: a token put before every window, or None.

    The windows drawn for a smaller count are the first of those for a larger one. Raises TritError
    for a text that is shorter than one window.
    """
    whole = [window.ids for window in windows(corpus, context, bos=bos)]
    whole = [ids for ids in whole if len(ids) == context]
    if not whole:
        raise TritError(
            f"{corpus.name}: too short, {len(corpus.ids)} tokens are less than one window of "
            f"{context}; give a longer text or a smaller context"
        )
    order = np.random.default_rng(seed).permutation(len(whole))[:count]
    return np.stack([whole[index] for index in order])
