"""Two models on the same images: how far a figure moved, and whether that could be chance.

The images are resampled in pairs: each draw takes the same images for both models, so that what
makes an image hard for both does not blur the difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onenip.errors import DataError, ParamsError
from onenip.evaluation.metrics import resampling
from onenip.evaluation.metrics.figures import IMAGE_NAMES, VERDICT_NAMES, Figure, Undefined
from onenip.evaluation.metrics.images import image_figures, verdict_figures


@dataclass(frozen=True)
class Difference:
    """A figure of two models on the same images; fractions in 0..1.

    Attributes:
        metric: name of the figure.
        champion: the figure of the first model.
        challenger: the figure of the second model.
        difference: challenger minus champion.
        low: lower end of the interval of the difference; not defined where that is not.
        high: its upper end.
        confidence: chance that such an interval holds the true difference.
    """

    metric: str
    champion: Figure
    challenger: Figure
    difference: Figure
    low: Figure
    high: Figure
    confidence: float

    @property
    def is_certain(self) -> bool:
        """Whether the interval leaves out 0: the two models really differ."""
        if isinstance(self.low, Undefined) or isinstance(self.high, Undefined):
            return False
        return self.low > 0 or self.high < 0


def paired_difference(
    champion_scores: ArrayLike,
    challenger_scores: ArrayLike,
    is_defective: ArrayLike,
    metric: str = "image_auroc",
    *,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Difference:
    """Difference of a figure between two models on the same images, with its interval.

    Args:
        champion_scores: [n] float, scores of the first model; its verdicts, [n] bool, for
            "accuracy", "recall" and "false_alarm_rate".
        challenger_scores: [n] the same of the second model, in the same order of images.
        is_defective: [n] bool, the truth.
        metric: one of `metrics.IMAGE_NAMES` or `metrics.VERDICT_NAMES`.
        confidence: of the interval, above 0 and below 1.
        draws: resamples of the images, good and defective ones separately.
        seed: of the resampling; the same one gives the same interval.

    Returns:
        The difference; not defined, with the reason, where the figure is not (no defective images,
        a score that is not finite, ...).

    Raises:
        ParamsError: if there is no such metric.
        DataError: if the scores are not of the same images.
    """
    if metric not in (*IMAGE_NAMES, *VERDICT_NAMES):
        known = ", ".join((*IMAGE_NAMES, *VERDICT_NAMES))
        raise ParamsError(f"no metric {metric!r} to compare by; there are {known}", key=metric)
    pair = [np.asarray(item, dtype=np.float64) for item in (champion_scores, challenger_scores)]
    labels = np.asarray(is_defective, dtype=bool)
    if pair[0].shape != labels.shape or pair[1].shape != labels.shape or labels.ndim != 1:
        shapes = f"{pair[0].shape}, {pair[1].shape} and {labels.shape}"
        raise DataError(f"two models are compared on the same images, not on {shapes}")
    figures = image_figures if metric in IMAGE_NAMES else verdict_figures
    values = [figures(scores, labels)[metric] for scores in pair]
    for value in values:
        if isinstance(value, Undefined):
            return Difference(metric, values[0], values[1], value, value, value, confidence)
    taken = resampling.draw_images(labels, draws=draws, rng=np.random.default_rng(seed))
    replicate = (
        resampling.image_replicates if metric in IMAGE_NAMES else resampling.verdict_replicates
    )
    first, second = (replicate(scores, labels, taken)[metric] for scores in pair)
    return difference_of(metric, values[0], values[1], second - first, confidence=confidence)


def difference_of(
    metric: str,
    champion: Figure,
    challenger: Figure,
    differences: NDArray[np.float64],
    *,
    confidence: float,
) -> Difference:
    """Difference of two figures, given [draws] differences of their paired replicates."""
    for value in (champion, challenger):
        if isinstance(value, Undefined):
            return Difference(metric, champion, challenger, value, value, value, confidence)
    assert not isinstance(champion, Undefined)
    assert not isinstance(challenger, Undefined)
    ends = resampling.interval(differences, confidence=confidence)
    missing = Undefined("too few draws define it")
    low, high = ends or (missing, missing)
    return Difference(metric, champion, challenger, challenger - champion, low, high, confidence)
