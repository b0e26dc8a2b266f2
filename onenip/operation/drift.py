"""Drift: whether arriving normal images still look like those that the champion was approved on.

Takes scores, verdicts and distances, gives figures and reasons; remembers what was said already.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from onenip.folders import write_whole
from onenip.params import DriftParams

Origin = Literal["arrived", "served"]

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
        images: images that were looked at.
        alarm_share: fraction of them that the champion calls anomalous.
        score_distance: Kolmogorov-Smirnov distance between their scores and those at approval, 0..1.
        embedding_distance: median distance from the prompts, as a multiple of that at approval.
        reasons: a sentence for each limit that was passed; empty if there is no drift.
        digest: of the champion's model.
        origin: arrived in the inbox, or served.
    """

    category: str
    images: int
    alarm_share: float
    score_distance: float
    embedding_distance: float
    reasons: tuple[str, ...]
    digest: str = ""
    origin: Origin = "arrived"

    @property
    def title(self) -> str:
        """The category, and where its images come from if they did not arrive in the inbox."""
        return self.category if self.origin == "arrived" else f"{self.category} ({self.origin})"

    @property
    def is_drifting(self) -> bool:
        """Whether a limit was passed."""
        return bool(self.reasons)

    def dump(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"reasons": list(self.reasons)}


class DriftMemory:
    """Which drift people were notified of, in a JSON file: each once per champion.

    Args:
        path: the file; made with its folder if absent.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def choose_new(self, found: Sequence[DriftResult]) -> list[DriftResult]:
        """Drifting categories that were not remembered; what drifts no more is forgotten."""
        known = self.read()
        drifting = {result.title: result for result in found if result.is_drifting}
        measured = {result.title for result in found}
        self._write({c: d for c, d in known.items() if c not in measured or c in drifting})
        return [one for one in drifting.values() if known.get(one.title) != one.digest]

    def remember(self, result: DriftResult) -> None:
        """Note that people were notified."""
        self._write({**self.read(), result.title: result.digest})

    def read(self) -> dict[str, str]:
        """Digest of the champion by category that people were notified about."""
        try:
            return dict(json.loads(self._path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def _write(self, known: dict[str, str]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(self._path) as draft:
            draft.write_text(json.dumps(known, sort_keys=True), encoding="utf-8")


def measure_drift(
    category: str,
    *,
    arrived: Sightings,
    approved: Sightings,
    params: DriftParams,
    origin: Origin = "arrived",
) -> DriftResult | None:
    """Compare arrived images with those at approval.

    Args:
        category: the product category.
        arrived: the latest images, those that were held included.
        approved: normal images that the champion was calibrated on.
        params: limits.
        origin: where the images come from.

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
            f"{share:.0%} of {count} {origin} images are called anomalous, "
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
    return DriftResult(category, count, share, distance, ratio, tuple(reasons), origin=origin)
