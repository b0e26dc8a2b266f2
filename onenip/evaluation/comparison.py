"""Two models on the same test images: how far each figure moved, whether by chance, which verdicts changed.

The images are resampled in pairs: each draw takes the same images for both models, so that what makes an
image hard for both does not blur the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from onenip.errors import DataError, ParamsError
from onenip.evaluation.category import summarize_images
from onenip.evaluation.metrics import (
    IMAGE_NAMES,
    NAMES,
    PIXEL_NAMES,
    VERDICT_NAMES,
    Figure,
    Undefined,
    image_figures,
    mean_figure,
    resampling,
    verdict_figures,
)
from onenip.evaluation.metrics.resampling import Draws, Replicates
from onenip.evaluation.results import Evaluation, ImageResult

MEAN = "mean"

_Pair = tuple[dict[str, Figure], dict[str, Figure]]


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
    groups: ArrayLike | None = None,
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
        groups: [n] int, images that are resampled together; None if each stands alone.

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
    if any(isinstance(value, Undefined) for value in values):
        return difference_of(metric, values[0], values[1], None, confidence=confidence)
    rng = np.random.default_rng(seed)
    taken = resampling.draw_images(labels, draws=draws, rng=rng, groups=groups)
    replicate = (
        resampling.image_replicates if metric in IMAGE_NAMES else resampling.verdict_replicates
    )
    first, second = (replicate(scores, labels, taken)[metric] for scores in pair)
    return difference_of(metric, values[0], values[1], second - first, confidence=confidence)


def difference_of(
    metric: str,
    champion: Figure,
    challenger: Figure,
    differences: Replicates | None,
    *,
    confidence: float,
) -> Difference:
    """Difference of two figures, given [draws] differences of their paired replicates, if there are any."""
    for value in (champion, challenger):
        if isinstance(value, Undefined):
            return Difference(metric, champion, challenger, value, value, value, confidence)
    assert not isinstance(champion, Undefined)
    assert not isinstance(challenger, Undefined)
    ends = None
    if differences is not None:
        ends = resampling.interval(differences, confidence=confidence)
    missing = Undefined("too few draws define it")
    low, high = ends or (missing, missing)
    return Difference(metric, champion, challenger, challenger - champion, low, high, confidence)


@dataclass(frozen=True)
class ChangedVerdict:
    """A test image that two models judge differently.

    Attributes:
        before: its score by the first model.
        after: its score by the second model.
    """

    before: ImageResult
    after: ImageResult

    @property
    def is_better(self) -> bool:
        """Whether the second model is right, and so the first was wrong."""
        return self.after.is_anomalous == self.after.is_defective


@dataclass(frozen=True)
class Comparison:
    """Everything that differs between two evaluations.

    Attributes:
        differences: per category and figure, and under "mean"; second minus first.
        changed: images whose verdict changed, by name.
        common: number of images that both have scored; all else is left out.
        only_first: number of images that only the first one has.
        only_second: number of images that only the second one has.
    """

    differences: dict[str, dict[str, Difference]]
    changed: tuple[ChangedVerdict, ...]
    common: int
    only_first: int
    only_second: int


def compare(
    first: Evaluation,
    second: Evaluation,
    *,
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Differences between two evaluations on the images that both have scored.

    Pixel figures are compared where both have scored the same images of a category, and not defined
    elsewhere: their counts are kept at scores of their own test set.

    Args:
        first: the champion's, or the older one.
        second: the challenger's, or the newer one.
        confidence: of the intervals.
        draws: resamples of the images, the same for both.
        seed: of the resampling.

    Raises:
        DataError: if they have no image in common, or disagree about an image's label.
    """
    before = {item.name: item for item in first.results}
    after = {item.name: item for item in second.results}
    names = sorted(before.keys() & after.keys())
    if not names:
        raise DataError(f"{first.folder} and {second.folder} have no test image in common")
    for name in names:
        if before[name].label != after[name].label:
            labels = f"{before[name].label} and {after[name].label}"
            raise DataError(f"{name}: labelled {labels} in the two evaluations")
    rng = np.random.default_rng(seed)
    pairs: dict[str, _Pair] = {}
    replicates: dict[str, dict[str, Replicates]] = {}
    for category in sorted({before[name].category for name in names}):
        own = [name for name in names if before[name].category == category]
        results = [before[name] for name in own], [after[name] for name in own]
        taken = resampling.draw_images(
            [item.is_defective for item in results[0]], draws=draws, rng=rng
        )
        sides = [
            _resample(evaluation, category, items, taken)
            for evaluation, items in zip((first, second), results, strict=True)
        ]
        if _pixel_images(first, category) != _pixel_images(second, category):
            for figures, _ in sides:
                figures.update(dict.fromkeys(PIXEL_NAMES, Undefined("pixels of other images")))
        pairs[category] = sides[0][0], sides[1][0]
        replicates[category] = {
            name: sides[1][1][name] - values
            for name, values in sides[0][1].items()
            if name in sides[1][1]
        }
    differences = {
        category: {
            name: difference_of(
                name,
                pair[0][name],
                pair[1][name],
                replicates[category].get(name),
                confidence=confidence,
            )
            for name in NAMES
        }
        for category, pair in pairs.items()
    }
    return Comparison(
        differences={MEAN: _differ_mean(pairs, replicates, confidence=confidence), **differences},
        changed=tuple(
            ChangedVerdict(before[name], after[name])
            for name in names
            if before[name].is_anomalous != after[name].is_anomalous
        ),
        common=len(names),
        only_first=len(before) - len(names),
        only_second=len(after) - len(names),
    )


def _resample(
    evaluation: Evaluation, category: str, results: Sequence[ImageResult], taken: Draws
) -> tuple[dict[str, Figure], dict[str, Replicates]]:
    """Figures of some of a category's images in one evaluation, and their replicates."""
    figures, replicates = summarize_images(results, taken)
    pixel_figures, pixel_replicates = _resample_pixels(evaluation, category, results, taken)
    return {**figures, **pixel_figures}, {**replicates, **pixel_replicates}


def _resample_pixels(
    evaluation: Evaluation, category: str, results: Sequence[ImageResult], taken: Draws
) -> tuple[dict[str, Figure], dict[str, Replicates]]:
    grid, names = evaluation.grids.get(category, (None, ()))
    if grid is None:
        reason = Undefined("no pixel counts of this category")
        return dict.fromkeys(PIXEL_NAMES, reason), {}
    column = {item.name: at for at, item in enumerate(results)}
    if not column.keys() >= set(names):
        return dict.fromkeys(PIXEL_NAMES, Undefined("pixels of other images")), {}
    stated = evaluation.metrics["categories"][category]
    figures: dict[str, Figure] = {
        name: Undefined("not defined") if stated[name] is None else float(stated[name])
        for name in PIXEL_NAMES
    }
    raw = resampling.pixel_replicates(grid, taken[:, [column[name] for name in names]])
    return figures, resampling.shift(raw, figures, grid)


def _pixel_images(evaluation: Evaluation, category: str) -> set[str]:
    return set(evaluation.grids[category][1]) if category in evaluation.grids else set()


def _differ_mean(
    pairs: Mapping[str, _Pair],
    replicates: Mapping[str, Mapping[str, Replicates]],
    *,
    confidence: float,
) -> dict[str, Difference]:
    """Differences of means over the categories in which a figure is defined for both."""
    found = {}
    for name in NAMES:
        both = {
            category: [side[name] for side in pair]
            for category, pair in pairs.items()
            if not any(isinstance(side[name], Undefined) for side in pair)
        }
        means = [mean_figure({key: pair[at] for key, pair in both.items()})[0] for at in (0, 1)]
        parts = [replicates[category][name] for category in both if name in replicates[category]]
        mean = np.mean(parts, axis=0) if parts else None
        found[name] = difference_of(name, means[0], means[1], mean, confidence=confidence)
    return found
