"""Perplexity and divergence against their definitions, written out."""

import math
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tritllm.errors import TritError
from tritllm.evaluation import divergence
from tritllm.evaluation.coded_logits import remember
from tritllm.evaluation.corpus import Corpus, windows
from tritllm.evaluation.divergence import compare, kl_between, measure

VOCABULARY = 7


class Bigram:
    """A model whose next-token logits depend on the last token alone."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(VOCABULARY, VOCABULARY, generator=generator)

    def __call__(self, input_ids):
        return SimpleNamespace(logits=self.table[input_ids])


def by_definition(model, reference, ids, context):
    loss = divergence = agreed = n = 0
    for start in range(0, len(ids), context):
        window = ids[start : start + context]
        for last, target in pairwise(window):
            q = torch.softmax(model.table[last].double(), -1)
            p = torch.softmax(reference.table[last].double(), -1)
            loss -= math.log(q[target])
            divergence += float((p * (p / q).log()).sum())
            agreed += int(p.argmax() == q.argmax())
            n += 1
    return math.exp(loss / n), divergence / n, agreed / n, n


@pytest.mark.parametrize("length", [2, 15, 16, 17, 31, 33, 100])
def test_scores_follow_the_protocol(length):
    ids = torch.randint(
        0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(length)
    ).tolist()
    reference, other = Bigram(0), Bigram(1)
    scores = compare(reference, {"other": other}, ids, context=16, batch=2)
    for name, model in (("float", reference), ("other", other)):
        found = scores[name]
        expected = by_definition(model, reference, ids, 16)
        assert (found.perplexity, found.mean_kl, found.agreement) == pytest.approx(
            expected[:3], rel=1e-5, abs=1e-6
        )
        assert found.predictions == expected[3]
    assert scores["float"].mean_kl == 0
    assert scores["float"].agreement == 1


def test_text_without_a_prediction():
    with pytest.raises(ValueError, match="fewer than two"):
        compare(Bigram(0), {}, [3])


def a_text(length):
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(0, VOCABULARY, (length,), generator=generator).numpy()
    return Corpus("text", "", ids)


def by_definition_in_float64(model, reference, cut):
    """-ln p of both, divergence and agreement of every prediction."""
    rows = []
    for window in cut:
        for position in range(window.first, len(window.ids)):
            last, target = window.ids[position - 1], window.ids[position]
            log_q = torch.log_softmax(model.table[last].double(), -1)
            log_p = torch.log_softmax(reference.table[last].double(), -1)
            kl = (log_p.exp() * (log_p - log_q)).sum()
            rows.append((-log_q[target], -log_p[target], kl, log_p.argmax() == log_q.argmax()))
    return np.array(rows, dtype=np.float64).T


@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("options", [{}, {"stride": 5}, {"bos": 2}, {"stride": 3, "bos": 2}])
def test_every_prediction_is_as_defined(options, batch, monkeypatch):
    monkeypatch.setattr(divergence, "_CHUNK_LOGITS", 4 * VOCABULARY)  # several a window
    reference, model = Bigram(0), Bigram(1)
    cut = windows(a_text(90), 16, **options)
    found = kl_between(reference, model, cut, batch=batch)
    expected = by_definition_in_float64(model, reference, cut)
    for ours, definition in zip((found.nll, found.reference_nll, found.kl), expected):
        np.testing.assert_allclose(ours, definition, rtol=1e-5, atol=1e-6)
    assert found.same_top.tolist() == expected[3].astype(bool).tolist()


def test_a_remembered_reference_gives_the_same_scores(monkeypatch):
    monkeypatch.setattr(divergence, "_CHUNK_LOGITS", 4 * VOCABULARY)
    reference, model = Bigram(0), Bigram(0)
    model.table = model.table + 0.01 * Bigram(1).table  # a divergence of some 1e-5
    reference.table[3, 4] = model.table[3, 4] = -math.inf  # a token that both rule out
    cut = windows(a_text(500), 16)
    cut = [w for w in cut if not ((w.ids[:-1] == 3) & (w.ids[1:] == 4)).any()]
    live = kl_between(reference, model, cut)
    coded = kl_between(remember(reference, cut), model, cut)
    assert 1e-6 < live.mean_kl < 1e-4
    assert abs(coded.mean_kl - live.mean_kl) < 1e-7
    np.testing.assert_allclose(coded.kl, live.kl, atol=2e-6)
    assert (coded.nll == live.nll).all()
    assert (coded.reference_nll == live.reference_nll).all()
    assert (coded.same_top == live.same_top).all()


def test_models_side_by_side_are_scored_as_alone():
    reference, a, b = (Bigram(seed) for seed in range(3))
    cut, done = windows(a_text(90), 16), []
    both = measure(reference, {"a": a, "b": b}, cut, batch=2, on_windows=done.append)
    for name, model in (("a", a), ("b", b)):
        alone = kl_between(reference, model, cut, batch=2)
        assert (both.candidates[name].kl == alone.kl).all()
    alone = measure(reference, {}, cut)
    assert alone.reference_perplexity == both.reference_perplexity
    assert done == [2, 4, 5, 6]  # the last window is shorter


class Broken(Bigram):
    """One token's row is something else."""

    def __init__(self, value):
        super().__init__(1)
        self.table[5] = value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused_by_model_and_window(value):
    text = a_text(90)
    cut = windows(text, 16)
    first = next(n for n, w in enumerate(cut) if 5 in w.ids[:-1])
    says = rf"NaN or infinite logits in window {first}, prediction"
    with pytest.raises(TritError, match=f"the bad one: {says}"):
        measure(Bigram(0), {"good": Bigram(2), "the bad one": Broken(value)}, cut)
    for reference in (Broken(value), remember(Broken(value), cut)):
        with pytest.raises(TritError, match=f"the reference: {says}"):
            kl_between(reference, Bigram(0), cut)
    with pytest.raises(TritError, match=f"the reference: {says}"):
        measure(Broken(value), {}, cut)


def test_a_model_that_rules_out_what_may_come():
    model = Bigram(1)
    model.table[5, 2] = -math.inf
    with pytest.raises(TritError, match="the model: an infinite divergence in window"):
        kl_between(Bigram(0), model, windows(a_text(90), 16))


def test_another_vocabulary():
    other = Bigram(1)
    other.table = torch.randn(VOCABULARY, VOCABULARY + 1)
    with pytest.raises(TritError, match="a vocabulary of 8, but the reference has 7"):
        kl_between(Bigram(0), other, windows(a_text(9), 4))
