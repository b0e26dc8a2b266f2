"""Scores of one category's test images, and their figures with bootstrap replicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onenip.data.labels import GOOD
from onenip.evaluation.counts import VerdictCounts
from onenip.evaluation.metrics import (
    NAMES,
    Figure,
    PixelScores,
    Undefined,
    image_figures,
    resampling,
    verdict_figures,
)
from onenip.evaluation.metrics.resampling import PixelGrid, Replicates
from onenip.evaluation.results import ImageResult


@dataclass(frozen=True)
class CategorySummary:
    """Figures of the test images of one category, or of one kind of defect.

    Attributes:
        figures: by name of `metrics.NAMES`.
        replicates: [draws] float64 of every figure that is defined.
        verdicts: missed defects and false alarms.
        unmasked: number of defective images without a mask, which pixel figures leave out.
        grid: pixel counts for comparisons; None if pixel figures are not defined.
        grid_names: images of the grid's rows.
    """

    figures: dict[str, Figure]
    replicates: dict[str, Replicates]
    verdicts: VerdictCounts
    unmasked: int
    grid: PixelGrid | None
    grid_names: tuple[str, ...]


class CategoryScores:
    """Scores of one category's test images, in memory that does not grow with the maps.

    Args:
        parent: folder for temporary files.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._parent = parent
        self.results: list[ImageResult] = []
        self._pixels: dict[str, PixelScores] = {}
        self._rows: dict[str, list[int]] = {}  # positions in `results` of the images in `_pixels`

    def update(
        self,
        result: ImageResult,
        score_map: NDArray[np.float32],
        mask: NDArray[np.bool_] | None,
    ) -> None:
        """Add an image.

        Args:
            result: the image, its score and its threshold.
            score_map: [H, W] float32.
            mask: [H, W] bool, True where defective; None if it is not known.

        Raises:
            DataError: if map and mask differ in shape, or the disk is full.
        """
        self.results.append(result)
        if mask is None:
            return
        if result.label not in self._pixels:
            self._pixels[result.label] = PixelScores(self._parent)
            self._rows[result.label] = []
        self._pixels[result.label].update(score_map, mask)
        self._rows[result.label].append(len(self.results) - 1)

    @property
    def defects(self) -> list[str]:
        """Kinds of defect, sorted."""
        return sorted({item.label for item in self.results if item.is_defective})

    def summarize(
        self, *, draws: int, rng: np.random.Generator, defect: str | None = None
    ) -> CategorySummary:
        """Figures of the category, or of its good images with those of one kind of defect.

        Args:
            draws: bootstrap resamples of the images; 0 leaves out the replicates.
            rng: draws the resamples.
            defect: the kind; None is all.
        """
        labels = [GOOD, *self.defects] if defect is None else [GOOD, defect]
        chosen = [at for at, item in enumerate(self.results) if item.label in labels]
        items = [self.results[at] for at in chosen]
        truth = np.array([item.is_defective for item in items], dtype=bool)
        known = [label for label in labels if label in self._pixels]
        pixels = PixelScores.merged(*(self._pixels[label] for label in known))
        pixel_rows = [at for label in known for at in self._rows[label]]
        taken = resampling.draw_images(truth, draws=draws, rng=rng) if draws and items else None
        figures, replicates = summarize_images(items, taken)
        figures |= pixels.compute()
        grid = None if pixels.reason or not draws else resampling.pixel_grid(pixels)
        if grid is not None and taken is not None:
            columns = np.searchsorted(chosen, pixel_rows)
            raw = resampling.pixel_replicates(grid, taken[:, columns])
            replicates |= resampling.shift(raw, figures, grid)
        return CategorySummary(
            figures={name: figures[name] for name in NAMES},
            replicates=replicates,
            verdicts=VerdictCounts.count((one.is_defective, one.is_anomalous) for one in items),
            unmasked=int(np.sum(truth)) - sum(len(self._rows[x]) for x in known if x != GOOD),
            grid=grid,
            grid_names=tuple(self.results[at].name for at in pixel_rows),
        )


def summarize_images(
    results: Sequence[ImageResult], taken: resampling.Draws | None
) -> tuple[dict[str, Figure], dict[str, Replicates]]:
    """Image and verdict figures of some images, and their replicates.

    Args:
        results: the images.
        taken: [draws, n] int64, how often each image is taken in each draw; None gives no replicates.
    """
    scores = np.array([item.score for item in results])
    truth = np.array([item.is_defective for item in results], dtype=bool)
    verdicts = np.array([item.is_anomalous for item in results], dtype=bool)
    figures = {**image_figures(scores, truth), **verdict_figures(verdicts, truth)}
    if taken is None:
        return figures, {}
    replicates = resampling.verdict_replicates(verdicts, truth, taken)
    if not isinstance(figures["image_auroc"], Undefined):
        replicates |= resampling.image_replicates(scores, truth, taken)
    return figures, replicates
