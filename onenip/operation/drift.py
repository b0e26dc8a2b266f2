"""Drift: whether arriving normal images still look like those that the champion was approved on.

Pure: takes scores, verdicts and distances, gives figures and reasons.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from onenip.params import DriftParams

_CHANCE = 0.01  # a difference that chance gives more often than this is none


@dataclass(frozen=True)
class Sightings:
    """What a champion says of normal images of one category.

    Attributes:
        scores: [n] float64, image scores.
        is_anomalous: [n] bool, its verdicts.
        distances: [m] float64, of embeddings from the nearest prompt; of the same images, or some.
    """

    scores: NDArray[np.float64]
    is_anomalous: NDArray[np.bool_]
    distances: NDArray[np.float64]

    @classmethod
    def of(cls, scores: ArrayLike, is_anomalous: ArrayLike, distances: ArrayLike) -> Sightings:
        """Sightings of plain lists."""
        return cls(
            np.asarray(scores, dtype=np.float64),
            np.asarray(is_anomalous, dtype=bool),
            np.asarray(distances, dtype=np.float64),
        )


@dataclass(frozen=True)
class DriftResult:
    """How far one category moved.

    Attributes:
        category: the product category.
        images: arrived images that were looked at.
        alarm_share: fraction of them that the champion calls anomalous.
        score_distance: Kolmogorov-Smirnov distance between their scores and those at approval, 0..1.
        embedding_distance: median distance from the prompts, as a multiple of that at approval.
        reasons: a sentence for each limit that was passed; empty if there is no drift.
    """

    category: str
    images: int
    alarm_share: float
    score_distance: float
    embedding_distance: float
    reasons: tuple[str, ...]

    @property
    def is_drifting(self) -> bool:
        """Whether a limit was passed."""
        return bool(self.reasons)

    def dump(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"reasons": list(self.reasons)}


def measure_drift(
    category: str, *, arrived: Sightings, approved: Sightings, params: DriftParams
) -> DriftResult | None:
    """Compare arrived images with those at approval.

    Args:
        category: the product category.
        arrived: the latest images, those that were held included.
        approved: normal images that the champion was calibrated on.
        params: limits.

    Returns:
        What was found; None while too few images arrived, or nothing is known of the approval.
    """
    count = arrived.scores.size
    if count < params.min_images or not approved.scores.size:
        return None
    share = float(arrived.is_anomalous.mean())
    test = stats.ks_2samp(arrived.scores, approved.scores)
    usual = float(np.median(approved.distances)) if approved.distances.size else 0.0
    now = float(np.median(arrived.distances)) if arrived.distances.size else 0.0
    ratio = now / usual if usual > 0 else 1.0
    reasons = []
    if share > params.max_alarm_share:
        reasons.append(
            f"{share:.0%} of {count} arrived images are called anomalous, "
            f"more than {params.max_alarm_share:.0%}"
        )
    if test.statistic > params.max_score_distance and test.pvalue < _CHANCE:
        reasons.append(
            f"scores are distributed otherwise than at approval: distance {test.statistic:.2f}, "
            f"more than {params.max_score_distance:g}"
        )
    if ratio > params.max_embedding_distance:
        reasons.append(
            f"images look {ratio:.1f} times as far from the prompts as at approval, "
            f"more than {params.max_embedding_distance:g}"
        )
    distance = float(test.statistic)
    return DriftResult(category, count, share, distance, ratio, tuple(reasons))
