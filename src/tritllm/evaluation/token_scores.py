"""What is known of every single prediction, and the statistics of all of them.

The statistics are those that llama.cpp's `llama-perplexity --kl-divergence` prints, by the same
formulas. A standard error takes the predictions as independent draws: of a figure x it is the
standard deviation of x over the square root of n - 1, and that of a ratio of perplexities is the
paired one, which counts the two models' covariance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
KL_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0, 0.1)
PROBABILITY_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1)


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Distribution:
    """How a figure is distributed over the predictions. percentiles: by percent, linear between."""

    mean: Estimate
    maximum: float
    percentiles: dict[float, float]
    minimum: float


@dataclass(frozen=True)
class Statistics:
    """Of one model beside the reference. Divergences in nats, probabilities as shares of 1.

    perplexity, reference_perplexity: exp of the mean negative log-likelihood.
    ln_ratio, ratio, difference: of the two perplexities, ln(model / reference), model / reference
        and model - reference, with paired standard errors.
    correlation: of the two models' log-likelihoods; None where one of them does not vary.
    kl: KL(reference || model).
    probability_change: of the text's own token, model - reference; and its root mean square.
    same_top: the share of predictions with the same most likely token.
    """

    predictions: int
    perplexity: Estimate
    reference_perplexity: Estimate
    ln_ratio: Estimate
    ratio: Estimate
    difference: Estimate
    correlation: float | None
    kl: Distribution
    probability_change: Distribution
    probability_change_rms: Estimate
    same_top: Estimate


@dataclass(frozen=True)
class TokenScores:
    """Of one model beside the reference, for every prediction in the text's order.

    nll, reference_nll: float64 [predictions], -ln of the probability of the text's own token.
    kl: float64 [predictions], KL(reference || model) in nats.
    same_top: bool [predictions], whether both have the same most likely token.
    """

    nll: Values
    reference_nll: Values
    kl: Values
    same_top: npt.NDArray[np.bool_]

    @property
    def mean_kl(self) -> float:
        """In nats a token."""
        return float(self.kl.mean())

    @property
    def perplexity(self) -> float:
        """Of the model."""
        return math.exp(self.nll.mean())

    @property
    def agreement(self) -> float:
        """The share of predictions with the same most likely token."""
        return float(self.same_top.mean())

    def statistics(self) -> Statistics:
        """All that llama.cpp prints, with standard errors."""
        own, base = _estimate(self.nll), _estimate(self.reference_nll)
        covariance = _covariance(self.nll, self.reference_nll)
        spread = own.error * base.error
        ln_ratio = Estimate(
            own.value - base.value,
            _root(own.error**2 + base.error**2 - 2 * covariance),
        )
        perplexity, reference = _exp(own), _exp(base)
        difference = Estimate(
            perplexity.value - reference.value,
            _root(
                perplexity.error**2
                + reference.error**2
                - 2 * perplexity.value * reference.value * covariance
            ),
        )
        change = np.exp(-self.nll) - np.exp(-self.reference_nll)
        square = _estimate(change**2)
        rms = math.sqrt(square.value)
        share = self.agreement
        n = len(self.nll)
        return Statistics(
            predictions=n,
            perplexity=perplexity,
            reference_perplexity=reference,
            ln_ratio=ln_ratio,
            ratio=_exp(ln_ratio),
            difference=difference,
            correlation=covariance / spread if spread else None,
            kl=_distribution(self.kl, KL_PERCENTILES),
            probability_change=_distribution(change, PROBABILITY_PERCENTILES),
            probability_change_rms=Estimate(rms, square.error / (2 * rms) if rms else 0.0),
            same_top=Estimate(share, _root(share * (1 - share) / max(n - 1, 1))),
        )


def joined(parts: Sequence[TokenScores]) -> TokenScores:
    """The scores of consecutive pieces of a text as one."""
    return TokenScores(
        np.concatenate([part.nll for part in parts]),
        np.concatenate([part.reference_nll for part in parts]),
        np.concatenate([part.kl for part in parts]),
        np.concatenate([part.same_top for part in parts]),
    )


def _estimate(values: Values) -> Estimate:
    return Estimate(float(values.mean()), _root(_covariance(values, values)))


def _covariance(a: Values, b: Values) -> float:
    """Of the means of two paired figures."""
    if len(a) < 2:
        return 0.0
    return float(((a - a.mean()) * (b - b.mean())).mean() / (len(a) - 1))


def _exp(logarithm: Estimate) -> Estimate:
    value = math.exp(logarithm.value)
    return Estimate(value, value * logarithm.error)


def _root(square: float) -> float:
    return math.sqrt(max(square, 0.0))  # a variance rounded to below zero is zero


def _distribution(values: Values, percents: Sequence[float]) -> Distribution:
    return Distribution(
        _estimate(values),
        float(values.max()),
        dict(zip(percents, np.percentile(values, percents).tolist(), strict=True)),
        float(values.min()),
    )
