"""Texts, token ids and windows: every token counts once, and bad texts are refused in one line."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from tritllm.errors import TritError
from tritllm.evaluation.corpus import (
    Corpus,
    Text,
    bos_token,
    read_text,
    sample_windows,
    tokenize,
    windows,
)

BOS = 99


class Letters:
    """A tokenizer of the 26 letters and the space; 26 stands for all else, or that is dropped."""

    bos_token_id = BOS

    def __init__(self, unknown=26, adds_bos=False):
        self.unk_token_id = unknown
        self.adds_bos = adds_bos

    def __call__(self, text, add_special_tokens=True, verbose=True):
        ids = [27 if c == " " else ord(c) - 97 if "a" <= c <= "z" else 26 for c in text]
        if self.unk_token_id is None:
            ids = [i for i in ids if i != 26]
        return {"input_ids": [BOS] * (add_special_tokens and self.adds_bos) + ids}

    def decode(self, ids, skip_special_tokens):
        return "".join("?" if i == 26 else " " if i == 27 else chr(97 + i) for i in ids)


def corpus(tokens: int) -> Corpus:
    return Corpus("text", "", np.arange(tokens, dtype=np.int64))


def test_a_file_is_read_byte_for_byte(tmp_path):
    data = "Größe\r\nund mehr\n".encode()
    (tmp_path / "a.txt").write_bytes(data)
    text = read_text(tmp_path / "a.txt")
    assert text.content.encode() == data
    assert text.sha256 == hashlib.sha256(data).hexdigest()
    assert text.name == str(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"", "an empty text"), (b" \n\t", "an empty text"), (b"ab\xe9", "not UTF-8 text")],
)
def test_texts_that_are_none(tmp_path, data, says):
    (tmp_path / "bad.txt").write_bytes(data)
    with pytest.raises(TritError, match=rf"bad\.txt: {says}"):
        read_text(tmp_path / "bad.txt")


def test_no_such_file(tmp_path):
    with pytest.raises(TritError, match=r"nowhere: No such file or directory"):
        read_text(tmp_path / "nowhere")


@pytest.mark.parametrize("unknown", [26, None], ids=["marked", "dropped"])
def test_a_text_in_another_alphabet(unknown):
    tokenizer = Letters(unknown)
    assert len(tokenize(Text("t", "abc äöü", ""), tokenizer).ids) == (7 if unknown else 4)
    with pytest.raises(TritError, match=r"t: the model's tokenizer does not know 7\d % of it"):
        tokenize(Text("t", "abäöüßéè", ""), tokenizer)


def test_the_rule_for_bos():
    assert bos_token(Letters()) is None
    assert bos_token(Letters(adds_bos=True)) == BOS
    assert bos_token(Letters(), "always") == BOS
    assert bos_token(Letters(adds_bos=True), "never") is None
    with pytest.raises(TritError, match="--bos maybe is not one of auto, always, never"):
        bos_token(Letters(), "maybe")
    none = Letters()
    none.bos_token_id = None
    assert bos_token(none) is None
    with pytest.raises(TritError, match="has no BOS token"):
        bos_token(none, "always")


@pytest.mark.parametrize("bos", [None, BOS])
@pytest.mark.parametrize("length", [2, 7, 8, 9, 15, 16, 17, 40])
@pytest.mark.parametrize("stride", [None, 1, 3, 7])
def test_every_token_counts_once(length, stride, bos):
    """And is predicted from the tokens before it, as many as the window has room for."""
    context, scored = 8, []
    cut = windows(corpus(length), context, stride=stride, bos=bos)
    for window in cut:
        assert 2 <= len(window.ids) <= context
        assert window.predictions == len(window.ids[window.first :]) > 0
        body = window.ids if bos is None else window.ids[1:]
        assert bos is None or window.ids[0] == BOS
        assert list(np.diff(body)) == [1] * (len(body) - 1)
        scored += window.ids[window.first :].tolist()
    step = (context - (bos is not None)) if stride is None else stride
    if bos is not None:
        expected = list(range(length))
    elif step == context:
        expected = [token for token in range(length) if token % context]
    else:
        expected = list(range(1, length))
    assert scored == expected


def test_windows_of_the_published_protocol():
    cut = windows(corpus(20), 8)
    assert [w.ids.tolist() for w in cut] == [
        list(range(8)),
        list(range(8, 16)),
        list(range(16, 20)),
    ]
    assert [w.first for w in cut] == [1, 1, 1]
    assert len(windows(corpus(17), 8)) == 2  # the last token alone is no window


@pytest.mark.parametrize(
    ("tokens", "options", "says"),
    [
        (0, {}, "too short, 0 tokens"),
        (1, {}, "too short, 1 tokens"),
        (9, {"context": 1}, "--context 1 is less than 2"),
        (9, {"stride": 0}, r"--stride 0 is not 1\.\.8"),
        (9, {"stride": 9}, r"--stride 9 is not 1\.\.8"),
        (9, {"stride": 8, "bos": BOS}, r"--stride 8 is not 1\.\.7"),
    ],
)
def test_windows_that_cannot_be(tokens, options, says):
    with pytest.raises(TritError, match=says):
        windows(corpus(tokens), **{"context": 8} | options)


def test_sampled_windows_are_whole_seeded_and_nested():
    whole = [list(range(start, start + 8)) for start in range(0, 80, 8)]
    all_of_them = sample_windows(corpus(87), 8, 100, seed=3)
    assert sorted(all_of_them.tolist()) == whole
    assert all_of_them.tolist() != whole
    assert sample_windows(corpus(87), 8, 4, seed=3).tolist() == all_of_them[:4].tolist()
    assert sample_windows(corpus(87), 8, 4, seed=4).tolist() != all_of_them[:4].tolist()
    with_bos = sample_windows(corpus(87), 8, 2, bos=BOS)
    assert with_bos.shape == (2, 8)
    assert (with_bos[:, 0] == BOS).all()
    with pytest.raises(TritError, match="7 tokens are less than one window of 8"):
        sample_windows(corpus(7), 8, 1)
