"""The statistics against the formulas that llama.cpp uses, written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from tritllm.evaluation.token_scores import TokenScores, joined


@pytest.fixture
def scores():
    rng = np.random.default_rng(5)
    base = rng.gamma(2.0, 1.0, 1001)
    nll = np.abs(base + rng.normal(0.05, 0.2, base.size))
    kl = rng.gamma(0.5, 0.02, base.size)
    return TokenScores(nll, base, kl, rng.random(base.size) < 0.9)


def mean_and_uncertainty(x):
    """From sums of x and of x squared, as llama.cpp has them."""
    n, mean = len(x), x.sum() / len(x)
    return mean, np.sqrt(((x * x).sum() / n - mean * mean) / (n - 1))


def check(estimate, value, error):
    assert estimate.value == pytest.approx(value, rel=1e-9)
    assert estimate.error == pytest.approx(error, rel=1e-6)


def test_perplexities_and_their_paired_ratio(scores):
    found = scores.statistics()
    n = found.predictions
    a, b = scores.nll, scores.reference_nll
    (ma, ea), (mb, eb) = mean_and_uncertainty(a), mean_and_uncertainty(b)
    check(found.perplexity, np.exp(ma), np.exp(ma) * ea)
    check(found.reference_perplexity, np.exp(mb), np.exp(mb) * eb)
    covariance = ((a * b).sum() / n - ma * mb) / (n - 1)
    assert found.correlation == pytest.approx(covariance / (ea * eb))
    assert found.correlation == pytest.approx(np.corrcoef(a, b)[0, 1])
    error = np.sqrt(ea**2 + eb**2 - 2 * covariance)
    assert error == pytest.approx(np.std(a - b) / np.sqrt(n - 1))  # paired: of the difference
    check(found.ln_ratio, ma - mb, error)
    check(found.ratio, np.exp(ma - mb), np.exp(ma - mb) * error)
    pa, pb = np.exp(ma), np.exp(mb)
    spread = (pa * ea) ** 2 + (pb * eb) ** 2 - 2 * pa * pb * covariance
    check(found.difference, pa - pb, np.sqrt(spread))
    assert found.ln_ratio.error < ea / 5  # which is why it is paired


def test_divergence_and_change_of_probability(scores):
    found = scores.statistics()
    check(found.kl.mean, *mean_and_uncertainty(scores.kl))
    assert found.kl.mean.value == scores.mean_kl
    ordered = np.sort(scores.kl)
    assert (found.kl.minimum, found.kl.maximum) == (ordered[0], ordered[-1])
    assert found.kl.percentiles[50.0] == ordered[500]
    for percent, value in found.kl.percentiles.items():
        position = percent / 100 * 1000
        low = int(position)
        share = position - low
        assert value == pytest.approx((1 - share) * ordered[low] + share * ordered[low + 1])
    change = np.exp(-scores.nll) - np.exp(-scores.reference_nll)
    check(found.probability_change.mean, *mean_and_uncertainty(change))
    assert found.probability_change.percentiles[25.0] == np.sort(change)[250]
    square, error = mean_and_uncertainty(change**2)
    check(found.probability_change_rms, np.sqrt(square), 0.5 / np.sqrt(square) * error)
    top = scores.same_top.mean()
    check(found.same_top, top, np.sqrt(top * (1 - top) / 1000))


def test_a_model_beside_itself():
    nll = np.array([1.0, 2.0, 0.5])
    found = TokenScores(nll, nll, np.zeros(3), np.ones(3, bool)).statistics()
    assert (found.ratio.value, found.ratio.error) == (1.0, 0.0)
    assert (found.kl.mean.value, found.kl.maximum) == (0.0, 0.0)
    assert found.probability_change_rms.error == 0.0
    assert found.correlation == pytest.approx(1)


def test_one_prediction_has_no_spread():
    one = TokenScores(np.ones(1), np.ones(1), np.ones(1), np.ones(1, bool)).statistics()
    assert one.perplexity.error == 0.0
    assert one.correlation is None


def test_pieces_are_joined_in_order(scores):
    pieces = [
        TokenScores(
            scores.nll[part], scores.reference_nll[part], scores.kl[part], scores.same_top[part]
        )
        for part in (slice(0, 10), slice(10, 500), slice(500, None))
    ]
    assert joined(pieces).statistics() == scores.statistics()
