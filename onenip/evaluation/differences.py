"""Two evaluations of the same test images: what moved, by how much, and which verdicts changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onenip.errors import DataError
from onenip.evaluation.comparison import Difference, difference_of
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
class ChangedVerdict:
    """A test image that two models judge differently.

    Attributes:
        before: what the first model said of it.
        after: what the second one says.
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
    replicates: dict[str, dict[str, NDArray[np.float64]]] = {}
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
            name: _differ(name, pair, replicates[category].get(name), confidence=confidence)
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
    scores = np.array([item.score for item in results])
    truth = np.array([item.is_defective for item in results], dtype=bool)
    verdicts = np.array([item.is_anomalous for item in results], dtype=bool)
    figures = {**image_figures(scores, truth), **verdict_figures(verdicts, truth)}
    replicates = resampling.verdict_replicates(verdicts, truth, taken)
    if not isinstance(figures["image_auroc"], Undefined):
        replicates.update(resampling.image_replicates(scores, truth, taken))
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


def _differ(
    name: str, pair: _Pair, differences: Replicates | None, *, confidence: float
) -> Difference:
    values = differences if differences is not None else np.empty(0)
    return difference_of(name, pair[0][name], pair[1][name], values, confidence=confidence)


def _differ_mean(
    pairs: Mapping[str, _Pair],
    replicates: Mapping[str, Mapping[str, Replicates]],
    *,
    confidence: float,
) -> dict[str, Difference]:
    """Differences of means over the categories in which a figure is defined for both."""
    means = {}
    for name in (*IMAGE_NAMES, *PIXEL_NAMES, *VERDICT_NAMES):
        both = [
            category
            for category, pair in pairs.items()
            if not any(isinstance(figures[name], Undefined) for figures in pair)
        ]
        ends: _Pair = ({}, {})
        for side in (0, 1):
            values = {category: pairs[category][side][name] for category in both}
            ends[side][name] = mean_figure(values)[0]
        parts = [replicates[category][name] for category in both if name in replicates[category]]
        mean = np.mean(parts, axis=0) if parts else None
        means[name] = _differ(name, ends, mean, confidence=confidence)
    return means
