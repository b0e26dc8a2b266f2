"""Distribution of the scores of normal images, and the threshold of a wanted false-alarm rate.

A score above its threshold is anomalous; one equal to it is not. Test images have no part in it.

* Held-out normals, to which nothing was fitted, show where scores lie. Those that training has seen score
  lower: they are moved up by the difference of medians and stretched by the ratio of spreads. Both are
  measured in every category and shrunk to their mean, so that nine images do not decide alone.
* Center and spread are the median and the interquartile range, which one outlier does not move.
* The tail is the category's own where it has enough normals, else that of all categories' scores in units
  of their spread.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from onenip.errors import DataError

CONFIDENCE = 0.95  # of the interval of a promised false-alarm rate
OUTLIER = 6.0  # spreads above the center from which a normal image is an outlier

_IQR = 1.349  # interquartile range of a normal distribution in standard deviations
_MEDIAN_NOISE = 1.57  # variance of a median of n normal values, times n, in squared deviations
_SPREAD_NOISE = 1.4  # the same of the logarithm of their interquartile range
_MIN_MEASURED = 4  # scores of each kind that a difference is measured from
_OWN_TAIL = 2.0  # normals beyond the threshold at which a category's own tail counts for half
_USUAL_SPREAD = 6.0  # images of a category that the spread of the others counts for
_PRIOR_TAIL = 40  # normals that the assumed tail counts for
_UNRELIABLE = 3  # normals next above a threshold, which say nothing of the least to expect
_TINY = 1e-6


@dataclass(frozen=True)
class NormalScores:
    """Scores of a category's normal images, each judged without what came from itself.

    Attributes:
        held_out: [n] float, of images that nothing was fitted to.
        fitted: [m] float, of images that training has seen.
    """

    held_out: NDArray[np.float64]
    fitted: NDArray[np.float64]

    @classmethod
    def of(cls, held_out: ArrayLike, fitted: ArrayLike = ()) -> NormalScores:
        """From any sequences.

        Raises:
            DataError: if there are no scores, or one is not finite.
        """
        scores = cls(np.asarray(held_out, np.float64), np.asarray(fitted, np.float64))
        if not scores.held_out.size + scores.fitted.size:
            raise DataError("no scores to choose a threshold from")
        if not np.isfinite(np.concatenate([scores.held_out, scores.fitted])).all():
            raise DataError("a score to choose a threshold from is not a finite number")
        return scores


@dataclass(frozen=True)
class Bias:
    """How held-out normals score beside fitted ones, over all categories.

    Attributes:
        shift: difference of medians, in spreads of the fitted ones.
        shift_deviation: standard deviation of that from category to category.
        log_ratio: logarithm of the ratio of spreads.
        log_ratio_deviation: standard deviation of that.
    """

    shift: float = 0.5
    shift_deviation: float = 0.7
    log_ratio: float = 0.0
    log_ratio_deviation: float = 0.3


@dataclass(frozen=True)
class Distribution:
    """Distribution of the scores of a category's normals, as far as it is known.

    Attributes:
        scores: [n] float, held-out ones first, then fitted ones, moved to where held-out ones lie.
        center: their median.
        spread: their interquartile range, in standard deviations of a normal distribution.
        uncertainty: standard error of the shift of the fitted ones.
        tail: sorted standardised scores of normals of all categories.
    """

    scores: NDArray[np.float64]
    center: float
    spread: float
    uncertainty: float
    tail: NDArray[np.float64]

    def threshold(self, rate: float) -> float:
        """Score that a further normal exceeds with a chance of `rate`, above 0 and below 1."""
        common = self.center + self.spread * _upper_quantile(self.tail, rate) * self._widening
        weight = self._weigh_own(rate)
        return weight * _upper_quantile(np.sort(self.scores), rate) + (1 - weight) * common

    def false_alarm_rate(self, threshold: float) -> float:
        """Expected share of further normals above a threshold: the inverse of `threshold`."""
        rates = np.geomspace(0.9, 1e-3, 120)
        rising = np.maximum.accumulate([self.threshold(rate) for rate in rates])
        thresholds, first = np.unique(rising, return_index=True)
        if threshold > thresholds[-1]:
            return 0.0
        return float(np.interp(threshold, thresholds, rates[first]))

    def interval(self, threshold: float, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Interval of the false-alarm rate at a threshold, by Clopper and Pearson.

        It is widened by the uncertainty of the shift. For the lower end outliers do not count, nor do the
        lowest normals above the threshold, which was chosen among them: too few are there to rely on each.
        """
        reach = float(special.ndtri((1 + confidence) / 2)) * self.uncertainty
        count = len(self.scores)
        usual = self.scores[~find_outliers(self.scores)]
        fewest = max(int((usual > threshold + reach).sum()) - _UNRELIABLE, 0)
        most = int((self.scores > threshold - reach).sum())
        low = binomial_interval(fewest, count, confidence=confidence)[0]
        return low, binomial_interval(most, count, confidence=confidence)[1]

    @property
    def _widening(self) -> float:
        return math.sqrt(1 + 1 / len(self.scores))

    def _weigh_own(self, rate: float) -> float:
        beyond = max((len(self.scores) + 1) * rate - 1, 0.0)
        return beyond / (beyond + _OWN_TAIL)


def describe_normals(categories: Mapping[str, NormalScores]) -> dict[str, Distribution]:
    """Distribution of the normals' scores of each category, each informed by all the others."""
    bias = measure_bias(list(categories.values()))
    aligned = {name: _align(scores, bias) for name, scores in categories.items()}
    return _describe(aligned)


def describe_added(
    scores: NormalScores, others: Mapping[str, NormalScores], *, are_copies: bool
) -> Distribution:
    """Distribution of the normals' scores of a category that was added without training.

    Nothing was fitted to its images. Its spread is shrunk to that of the other categories, the more the fewer
    images it has, and its tail is theirs.

    Args:
        scores: of its normals.
        others: of the trained categories.
        are_copies: whether the scores are of copies of one image, which tell no spread.
    """
    own = np.array([np.median(scores.held_out)]) if are_copies else scores.held_out
    found = _describe({"": (own, 0.0)})[""]
    if not others:
        return found
    known = list(describe_normals(others).values())
    usual = float(np.median([one.spread for one in known]))
    weight = (len(own) - 1) / (len(own) - 1 + _USUAL_SPREAD)
    spread = usual ** (1 - weight) * found.spread**weight
    return replace(found, spread=spread, tail=known[0].tail)


def measure_bias(categories: Sequence[NormalScores]) -> Bias:
    """How held-out normals score beside fitted ones, over all categories that have enough of both."""
    usual = Bias()
    shifts, ratios = [], []
    for scores in categories:
        held_out, fitted = scores.held_out, scores.fitted
        if min(len(held_out), len(fitted)) < _MIN_MEASURED:
            continue
        noise = 1 / len(held_out) + 1 / len(fitted)
        spread = _spread(fitted)
        shifts.append(((np.median(held_out) - np.median(fitted)) / spread, _MEDIAN_NOISE * noise))
        ratios.append((math.log(_spread(held_out) / spread), _SPREAD_NOISE * noise))
    return Bias(
        *_combine(shifts, usual.shift, usual.shift_deviation),
        *_combine(ratios, usual.log_ratio, usual.log_ratio_deviation),
    )


def find_outliers(scores: ArrayLike) -> NDArray[np.bool_]:
    """[n] bool, scores far above the others, where there are at least four."""
    values = np.asarray(scores, np.float64)
    if len(values) < _MIN_MEASURED:
        return np.zeros(len(values), bool)
    flagged: NDArray[np.bool_] = values > np.median(values) + OUTLIER * _spread(values)
    return flagged


def binomial_interval(
    events: int, count: int, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Exact interval of a share, 0..1; all of it if nothing was counted.

    Args:
        events: number of events, at most `count`.
        count: number of trials.
        confidence: chance, at least, that such an interval holds the true share.

    Source: Clopper and Pearson, Biometrika 26 (1934).
    """
    tail = (1 - confidence) / 2
    low = float(special.betaincinv(events, count - events + 1, tail)) if events else 0.0
    high = (
        float(special.betaincinv(events + 1, count - events, 1 - tail)) if events < count else 1.0
    )
    return low, high


def _align(scores: NormalScores, bias: Bias) -> tuple[NDArray[np.float64], float]:
    """Held-out and fitted scores where held-out ones lie, and the standard error of the shift."""
    held_out, fitted = scores.held_out, scores.fitted
    if not len(fitted):
        return held_out, 0.0
    center, spread = float(np.median(fitted)), _spread(fitted)
    shift, deviation, log_ratio = bias.shift, bias.shift_deviation, bias.log_ratio
    if len(held_out):
        noise = _MEDIAN_NOISE * (math.exp(2 * log_ratio) / len(held_out) + 1 / len(fitted))
        trust = deviation**2 / (deviation**2 + noise)
        own = (float(np.median(held_out)) - center) / spread
        shift, deviation = trust * own + (1 - trust) * shift, math.sqrt(trust * noise)
    if len(held_out) >= _MIN_MEASURED:
        noise = _SPREAD_NOISE * (1 / len(held_out) + 1 / len(fitted))
        trust = bias.log_ratio_deviation**2 / (bias.log_ratio_deviation**2 + noise)
        log_ratio = trust * math.log(_spread(held_out) / spread) + (1 - trust) * log_ratio
    moved = center + spread * shift + (fitted - center) * math.exp(log_ratio)
    return np.concatenate([held_out, moved]), deviation * spread


def _describe(
    aligned: Mapping[str, tuple[NDArray[np.float64], float]],
) -> dict[str, Distribution]:
    centers = {name: float(np.median(scores)) for name, (scores, _) in aligned.items()}
    spreads = {name: _spread(scores) for name, (scores, _) in aligned.items()}
    standardised = [
        (scores - centers[name]) / spreads[name] for name, (scores, _) in aligned.items()
    ]
    tail = np.sort(np.concatenate([_assumed_tail(), *standardised]))
    return {
        name: Distribution(scores, centers[name], spreads[name], uncertainty, tail)
        for name, (scores, uncertainty) in aligned.items()
    }


def _assumed_tail() -> NDArray[np.float64]:
    """Standardised scores of normals before any is seen: a Gumbel distribution, scores being maxima."""
    chances = np.concatenate([(np.arange(_PRIOR_TAIL) + 0.5) / _PRIOR_TAIL, [0.25, 0.5, 0.75]])
    *values, low, middle, high = -np.log(-np.log(chances))
    scaled: NDArray[np.float64] = (np.array(values) - middle) / ((high - low) / _IQR)
    return scaled


def _combine(
    measured: Sequence[tuple[float, float]], usual: float, deviation: float
) -> tuple[float, float]:
    """Mean of noisy values and their deviation from category to category, with what is usual as one more."""
    if not measured:
        return usual, deviation
    values, noise = (np.array(column, float) for column in zip(*measured, strict=True))
    weights = 1 / (noise + deviation**2)
    mean = float((weights @ values + usual / deviation**2) / (weights.sum() + 1 / deviation**2))
    between = float(((values - mean) ** 2 - noise).sum() + deviation**2) / (len(values) + 1)
    return mean, math.sqrt(max(between, 0.01))


def _spread(scores: NDArray[np.float64]) -> float:
    low, high = np.quantile(scores, [0.25, 0.75])
    return max(float(high - low) / _IQR, _TINY)


def _upper_quantile(ordered: NDArray[np.float64], rate: float) -> float:
    """Value that a share `rate` of further scores exceeds, interpolated; the highest where none could.

    Args:
        ordered: scores, ascending.
        rate: above 0 and below 1.
    """
    place = min(max((len(ordered) + 1) * (1 - rate) - 1, 0.0), len(ordered) - 1.0)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return float(ordered[below] + (place - below) * (ordered[above] - ordered[below]))
