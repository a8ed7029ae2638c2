"""Perplexity and divergence against their definitions, written out."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from tritllm.evaluation.divergence import compare

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
