"""Bootstrap over images: intervals of every figure.

Good and defective images are drawn separately, with replacement, as many as there are of each (the
stratified percentile bootstrap). A draw is how often each image was taken, so that one draw gives
every figure, and two models on the same images. Image figures are exact in every draw. Pixel
figures are summed up per image at some hundred scores of the test set, the `PixelGrid`; what the
grid loses on the full test set is added back to each draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onenip.evaluation.metrics.areas import AUPRO_LIMITS
from onenip.evaluation.metrics.figures import Figure, Undefined
from onenip.evaluation.metrics.pixels import PixelScores
from onenip.evaluation.metrics.segments import Keys, Marks, split_marks

Draws = NDArray[np.int64]
Replicates = NDArray[np.float64]

_CELLS = 4_000_000  # numbers held at a time
_GRID_SCORES = 128  # of normal pixels, and as many of defective ones
_LOWEST_RATE = 1e-5  # of normal pixels: below it the grid has no scores


@dataclass(frozen=True)
class PixelGrid:
    """Counts of each image's pixels at or above some scores of the test set.

    Attributes:
        keys: [k] uint32, the scores, highest first, as `metrics.pixels.to_keys` makes them.
        alarms: [n, k] float64, normal pixels.
        found: [n, k] float64, defective pixels.
        overlap: [n, k] float64, share found of each defective region, summed over regions.
        totals: [n, 3] float64, all normal pixels, all defective pixels, regions.
    """

    keys: Keys
    alarms: NDArray[np.float64]
    found: NDArray[np.float64]
    overlap: NDArray[np.float64]
    totals: NDArray[np.float64]


def draw_images(
    is_defective: ArrayLike,
    *,
    draws: int,
    rng: np.random.Generator,
    groups: ArrayLike | None = None,
) -> Draws:
    """How often each image is taken in each draw: [draws, n] int64.

    Args:
        is_defective: [n] bool, the truth.
        draws: how many.
        rng: of the resampling.
        groups: [n] int; images of one kind and group are taken together, such as synthetic anomalies
            drawn into one image. None if each image stands alone.
    """
    labels = np.asarray(is_defective, dtype=bool).ravel()
    groups = np.arange(labels.size) if groups is None else np.asarray(groups)
    counts = np.zeros((draws, labels.size), dtype=np.int64)
    for stratum in (np.flatnonzero(~labels), np.flatnonzero(labels)):
        if stratum.size:
            names, group_of = np.unique(groups[stratum], return_inverse=True)
            shares = np.full(names.size, 1 / names.size)
            counts[:, stratum] = rng.multinomial(names.size, shares, size=draws)[:, group_of]
    return counts


def image_replicates(
    scores: ArrayLike, is_defective: ArrayLike, draws: Draws
) -> dict[str, Replicates]:
    """Image AUROC, AP and F1-max of each draw, [draws] float64, by name.

    Args:
        scores: [n] float, finite.
        is_defective: [n] bool, some of either.
        draws: from `draw_images` of the same images.
    """
    values, labels = np.asarray(scores, dtype=np.float64), np.asarray(is_defective, dtype=bool)
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    step = max(1, _CELLS // values.size)
    parts = [
        _curve_figures(draws[at : at + step][:, order], labels[order], first)
        for at in range(0, len(draws), step)
    ]
    names = ("image_auroc", "image_ap", "image_f1_max")
    return dict(zip(names, np.concatenate(parts, axis=1), strict=True))


def verdict_replicates(
    is_anomalous: ArrayLike, is_defective: ArrayLike, draws: Draws
) -> dict[str, Replicates]:
    """Accuracy, recall, false-alarm rate of each draw, [draws] float64; NaN: not defined."""
    flagged, labels = np.asarray(is_anomalous, dtype=bool), np.asarray(is_defective, dtype=bool)
    events = {
        "accuracy": (flagged == labels, np.ones_like(labels)),
        "recall": (flagged & labels, labels),
        "false_alarm_rate": (flagged & ~labels, ~labels),
    }
    return {
        name: _divide(draws @ event.astype(float), draws @ base.astype(float))
        for name, (event, base) in events.items()
    }


def pixel_grid(scores: PixelScores) -> PixelGrid:
    """Counts per image, from a second pass over the pixels; `scores.reason` must be empty."""
    keys = _choose_grid(scores)
    segments = scores.segments
    alarms, found, overlap = (np.empty((len(segments), keys.size)) for _ in range(3))
    for row, (normal, defective) in enumerate(scores.read()):
        alarms[row] = normal.size - np.searchsorted(normal, keys)
        found[row], overlap[row] = _count_defective(defective, keys)
    totals = [[item.normal, item.defective, item.regions] for item in segments]
    return PixelGrid(keys, alarms, found, overlap, np.array(totals, dtype=np.float64))


def pixel_replicates(grid: PixelGrid, draws: Draws) -> dict[str, Replicates]:
    """Pixel figures of each draw on the grid, [draws] float64; NaN where a draw has no defects."""
    weights = draws.astype(np.float64)
    normal, defective, regions = (weights @ grid.totals).T[:, :, None]
    alarms, found = weights @ grid.alarms, weights @ grid.found
    rate = _pad(_divide(alarms, normal))
    recall = _pad(_divide(found, defective))
    precision = _divide(found, found + alarms, empty=1.0)
    figures = {
        "pixel_auroc": np.trapezoid(recall, rate, axis=1),
        "pixel_ap": np.sum(np.diff(recall[:, :-1], axis=1) * precision, axis=1),
        "pixel_f1_max": np.max(_divide(2 * found, found + alarms + defective), axis=1),
    }
    overlap = _pad(_divide(weights @ grid.overlap, regions))
    for name, limit in AUPRO_LIMITS.items():
        figures[name] = _area_up_to(rate, overlap, limit)
    return figures


def shift(
    replicates: Mapping[str, Replicates], full: Mapping[str, Figure], grid: PixelGrid
) -> dict[str, Replicates]:
    """Replicates moved by what the grid loses on all images, so that they surround `full`."""
    whole = np.ones((1, len(grid.totals)), dtype=np.int64)
    on_grid = pixel_replicates(grid, whole)
    moved = {}
    for name, values in replicates.items():
        exact = full[name]
        if not isinstance(exact, Undefined):
            moved[name] = np.clip(values + (exact - on_grid[name][0]), 0.0, 1.0)
    return moved


def interval(replicates: Replicates, *, confidence: float) -> tuple[float, float] | None:
    """Percentile interval; None if the figure is not defined in a tenth of the draws or more."""
    defined = replicates[np.isfinite(replicates)]
    if defined.size <= 0.9 * replicates.size:
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def _curve_figures(
    draws: Draws, is_defective: NDArray[np.bool_], first: NDArray[np.int64]
) -> NDArray[np.float64]:
    """AUROC, AP and F1-max [3, draws] of images in descending order; `first` starts each score."""
    tied_defects = np.add.reduceat(draws * is_defective, first, axis=1)
    tied_normals = np.add.reduceat(draws * ~is_defective, first, axis=1)
    found, alarms = np.cumsum(tied_defects, axis=1), np.cumsum(tied_normals, axis=1)
    defects, normals = found[:, -1:], alarms[:, -1:]
    ordered = np.sum(tied_defects * (2 * (normals - alarms) + tied_normals), axis=1)
    precision = _divide(found, found + alarms, empty=0.0)
    return np.stack(
        [
            _divide(ordered, 2 * (defects * normals)[:, 0]),
            _divide(np.sum(tied_defects * precision, axis=1), defects[:, 0]),
            np.max(_divide(2 * found, found + alarms + defects), axis=1),
        ]
    )


def _choose_grid(scores: PixelScores) -> Keys:
    """Scores spread evenly over defective pixels, and by powers of the rate over normal ones."""
    segments = scores.segments
    normal = sum(segment.normal for segment in segments)
    defective = sum(segment.defective for segment in segments)
    rates = np.geomspace(max(_LOWEST_RATE, 1 / normal), 1.0, _GRID_SCORES)
    wanted = (
        np.unique(np.ceil(rates * normal).astype(np.int64) - 1),
        np.unique(np.linspace(0, defective - 1, _GRID_SCORES).astype(np.int64)),
    )
    chosen: list[Keys] = []
    seen = [0, 0]
    for slice_normal, slice_defective in scores.slices():
        keys = (slice_normal, split_marks(slice_defective)[0])
        for kind in (0, 1):
            size = keys[kind].size
            inside = wanted[kind][(wanted[kind] >= seen[kind]) & (wanted[kind] < seen[kind] + size)]
            chosen.append(keys[kind][size - 1 - (inside - seen[kind])])
            seen[kind] += size
    return np.unique(np.concatenate(chosen))[::-1]


def _count_defective(
    defective: Marks, keys: Keys
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Number of an image's defective pixels at or above each key, and the sum of their shares."""
    own, shares = split_marks(defective)
    below = np.searchsorted(own, keys)
    summed = np.concatenate([[0.0], np.cumsum(shares)])
    return (own.size - below).astype(np.float64), summed[-1] - summed[below]


def _pad(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """A curve [draws, k] with its first point, 0, and its last one, 1."""
    ends = np.zeros((len(curve), 1)), np.ones((len(curve), 1))
    return np.concatenate([ends[0], curve, ends[1]], axis=1)


def _area_up_to(
    rate: NDArray[np.float64], overlap: NDArray[np.float64], limit: float
) -> NDArray[np.float64]:
    """Areas under curves [draws, k] up to a rate, over that rate."""
    start, width = rate[:, :-1], np.diff(rate, axis=1)
    inside = np.clip(limit - start, 0.0, width)
    slope = _divide(np.diff(overlap, axis=1), width, empty=0.0)
    area: NDArray[np.float64] = np.sum(inside * (overlap[:, :-1] + slope * inside / 2), axis=1)
    return area / limit


def _divide(
    above: NDArray[np.generic], below: NDArray[np.generic], *, empty: float = np.nan
) -> NDArray[np.float64]:
    quotient: NDArray[np.float64] = np.full(np.broadcast_shapes(above.shape, below.shape), empty)
    np.divide(above, below, out=quotient, where=np.broadcast_to(below, quotient.shape) != 0)
    return quotient
