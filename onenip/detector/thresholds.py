"""The image threshold, from scores of normal images, never of test images.

A score above its threshold is anomalous; one equal to it is not.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from onenip.errors import DataError


def false_alarm_threshold(scores: ArrayLike, rate: float) -> float:
    """Threshold that a further normal image exceeds with a chance of at most `rate`.

    With enough normals it is one of their scores, the ceil((n + 1) (1 - rate))-th smallest:
    whatever the distribution, and with ties, a further one of the same kind exceeds it with a
    chance of at most `rate`, on average over the choice of normals. That takes n >= 1 / rate - 1
    normals, such as 49 for 0.02. With fewer no score of theirs can promise that, so the threshold
    is extrapolated: the upper end of a Student prediction interval, mean + t * s * sqrt(1 + 1 /
    n), and never below their highest score; that one holds for scores that are about normally
    distributed. A single normal tells nothing of the spread, and is itself the threshold: treat it
    as provisional.

    Args:
        scores: [n] float, of normal images that nothing was fitted to.
        rate: target share of normal images called anomalous, above 0 and below 1.

    Raises:
        DataError: if there are no scores, or one is not finite.
    """
    ordered = np.sort(_to_finite(scores))
    assert 0 < rate < 1, rate
    count = ordered.size
    rank = math.ceil((count + 1) * (1 - rate) - 1e-9)
    if rank <= count:
        return float(ordered[rank - 1])
    if count == 1:
        return float(ordered[0])
    reach = stats.t.ppf(1 - rate, count - 1) * ordered.std(ddof=1) * math.sqrt(1 + 1 / count)
    return max(float(ordered[-1]), float(ordered.mean() + reach))


def _to_finite(scores: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64).ravel()
    if not values.size:
        raise DataError("no scores to choose a threshold from")
    if not np.isfinite(values).all():
        raise DataError("a score to choose a threshold from is not a finite number")
    return values
