"""Pixel AUROC, AP, F1-max and AUPRO, exactly, from counts in descending order of score.

All four change only at scores that some defective pixel has. So it is enough to know, for every
such distinct score, how many defective pixels have it and how many normal pixels lie above and at
it. Counts arrive in blocks, highest scores first; nothing but sums is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onenip.evaluation.metrics.figures import Figure, Undefined

AUPRO_LIMITS = {"aupro": 0.30, "aupro_05": 0.05}  # of normal pixels called anomalous


@dataclass(frozen=True)
class Block:
    """Counts at the distinct scores of defective pixels, highest first.

    Attributes:
        above: [k] int64, normal pixels of a higher score, in the whole test set.
        at_least: [k] int64, normal pixels of that score or a higher one.
        defective: [k] int64, defective pixels of exactly that score.
        coverage: [k] float64, sum of 1 / (size of its region) over those defective pixels.
    """

    above: NDArray[np.int64]
    at_least: NDArray[np.int64]
    defective: NDArray[np.int64]
    coverage: NDArray[np.float64]


class Areas:
    """Running sums of every pixel figure.

    Args:
        normal: number of normal pixels of the test set, above 0.
        defective: number of defective pixels, above 0.
        regions: number of connected defective regions.

    Source: AUPRO as in "The MVTec Anomaly Detection Dataset" (IJCV 2021), section 4.2: mean overlap
    per region against the rate of false positives over all normal pixels, trapezoids between
    distinct thresholds, divided by the limit.
    """

    def __init__(self, *, normal: int, defective: int, regions: int) -> None:
        self._normal = normal
        self._defective = defective
        self._regions = regions
        self._found = 0  # defective pixels at or above the last score
        self._overlap = 0.0  # mean overlap per region there
        self._alarms = 0  # normal pixels there
        self._twice_ordered = 0  # twice the pairs that are in order, ties count once
        self._precision = 0.0
        self._f1_max = 0.0
        self._pro = dict.fromkeys(AUPRO_LIMITS, 0.0)

    def add(self, block: Block) -> None:
        """Add the next lower scores."""
        if not block.defective.size:
            return
        found = self._found + np.cumsum(block.defective)
        overlap = self._overlap + np.cumsum(block.coverage) / self._regions
        twice_below = 2 * self._normal - block.above - block.at_least
        self._twice_ordered += int(np.sum(block.defective * twice_below))
        flagged = found + block.at_least
        self._precision += float(np.sum(block.defective * (found / flagged)))
        self._f1_max = max(self._f1_max, float(np.max(2 * found / (flagged + self._defective))))
        previous_overlap = np.concatenate([[self._overlap], overlap[:-1]])
        previous_alarms = np.concatenate([[self._alarms], block.at_least[:-1]])
        for name, fraction in AUPRO_LIMITS.items():
            limit = fraction * self._normal
            level = previous_overlap * np.diff(
                np.minimum(np.stack([previous_alarms, block.above]), limit), axis=0
            )
            rise = _area_of_rise(block.above, block.at_least, previous_overlap, overlap, limit)
            self._pro[name] += float(np.sum(level)) + float(np.sum(rise))
        self._found, self._overlap = int(found[-1]), float(overlap[-1])
        self._alarms = int(block.at_least[-1])

    def compute(self) -> dict[str, Figure]:
        """The figures; all defective pixels must have been added."""
        assert self._found == self._defective, (self._found, self._defective)
        figures: dict[str, Figure] = {
            "pixel_auroc": self._twice_ordered / (2 * self._normal * self._defective),
            "pixel_ap": self._precision / self._defective,
            "pixel_f1_max": self._f1_max,
        }
        for name, fraction in AUPRO_LIMITS.items():
            limit = fraction * self._normal
            rest = max(limit - self._alarms, 0.0) * self._overlap
            figures[name] = min((self._pro[name] + rest) / limit, 1.0)
        return figures


def undefined_areas(reason: str) -> dict[str, Figure]:
    """Every pixel figure as not defined, for one reason."""
    names = ("pixel_auroc", "pixel_ap", "pixel_f1_max", *AUPRO_LIMITS)
    return dict.fromkeys(names, Undefined(reason))


def _area_of_rise(
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    limit: float,
) -> NDArray[np.float64]:
    """Areas under straight lines from (start, low) to (stop, high), cut off at `limit`."""
    width = (stop - start).astype(np.float64)
    inside = np.clip(limit - start, 0.0, width)
    share = np.divide(inside, width, out=np.zeros_like(width), where=width > 0)
    area: NDArray[np.float64] = inside * (low + (high - low) * share / 2)
    return area
