"""Tables behind the plots: ROC, precision and recall, histograms, verdicts; one row per point.

Curves are thinned to at most 200 points per category; the figures are computed elsewhere, exactly.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from onenip.evaluation.results import ANOMALOUS, NORMAL, ImageResult

POINTS = 200
BINS = 24

Row = tuple[str | float | int, ...]


def roc_points(results: Sequence[ImageResult]) -> list[tuple[float, float]]:
    """(false-alarm rate, recall) of images, from (0, 0) to (1, 1); empty without both kinds."""
    if not _has_both(results):
        return []
    truth, scores = _to_arrays(results)
    rate, recall, _ = roc_curve(truth, scores, drop_intermediate=True)
    return _thin(rate, recall)


def pr_points(results: Sequence[ImageResult]) -> list[tuple[float, float]]:
    """(recall, precision) of images, by rising recall; empty without both kinds."""
    if not _has_both(results):
        return []
    truth, scores = _to_arrays(results)
    precision, recall, _ = precision_recall_curve(truth, scores, drop_intermediate=True)
    return _thin(recall[::-1], precision[::-1])


def histogram(results: Sequence[ImageResult]) -> list[tuple[float, float, int, int]]:
    """(score from, score to, good images, defective images) of equal bins over all scores."""
    truth, scores = _to_arrays(results)
    finite = scores[np.isfinite(scores)]
    if not finite.size:
        return []
    edges = np.histogram_bin_edges(finite, bins=BINS)
    good, defective = (np.histogram(scores[truth == kind], bins=edges)[0] for kind in (False, True))
    return [
        (float(edges[at]), float(edges[at + 1]), int(good[at]), int(defective[at]))
        for at in range(BINS)
    ]


def write_plots(folder: Path, results: Mapping[str, Sequence[ImageResult]]) -> None:
    """Write the tables that `dvc plots show` and `diff` draw; every category's rows in one file.

    Args:
        folder: gets `roc.csv`, `pr.csv`, `histogram.csv` and `verdicts.csv`.
        results: per category.
    """
    folder.mkdir(parents=True, exist_ok=True)
    curves = (
        ("roc.csv", ("category", "point", "false_alarm_rate", "recall"), roc_points),
        ("pr.csv", ("category", "point", "recall", "precision"), pr_points),
    )
    for name, header, points in curves:
        rows = (
            (category, at, *point)
            for category, items in results.items()
            for at, point in enumerate(points(items))
        )
        _write(folder / name, header, rows)
    _write(
        folder / "histogram.csv",
        ("category", "score", "label", "images"),
        (
            (category, (low + high) / 2, label, count)
            for category, items in results.items()
            for low, high, good, defective in histogram(items)
            for label, count in (("good", good), ("defective", defective))
        ),
    )
    _write(
        folder / "verdicts.csv",
        ("category", "actual", "predicted"),
        (
            (
                category,
                "defective" if item.is_defective else "good",
                ANOMALOUS if item.is_anomalous else NORMAL,
            )
            for category, items in results.items()
            for item in items
        ),
    )


def _has_both(results: Sequence[ImageResult]) -> bool:
    kinds = {item.is_defective for item in results}
    return len(kinds) == 2 and all(np.isfinite(item.score) for item in results)


def _to_arrays(
    results: Sequence[ImageResult],
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    truth = np.array([item.is_defective for item in results], dtype=np.bool_)
    return truth, np.array([item.score for item in results], dtype=np.float64)


def _thin(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[tuple[float, float]]:
    keep = np.unique(np.linspace(0, x.size - 1, min(POINTS, x.size)).round().astype(int))
    return list(zip(x[keep].tolist(), y[keep].tolist(), strict=True))


def _write(path: Path, header: Row, rows: Iterable[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
