"""Figures of image scores and of verdicts; a figure is a number or `Undefined`, never a silent 0.

scikit-learn does the counting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from onenip.errors import DataError

IMAGE_NAMES = ("image_auroc", "image_ap", "image_f1_max")
PIXEL_NAMES = ("pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro", "aupro_05")
VERDICT_NAMES = ("accuracy", "recall", "false_alarm_rate")
NAMES = (*IMAGE_NAMES, *PIXEL_NAMES, *VERDICT_NAMES)


@dataclass(frozen=True)
class Undefined:
    """A figure that these data cannot give; `reason` says why in a few words."""

    reason: str


Figure = float | Undefined


def mean_figure(figures: Mapping[str, Figure]) -> tuple[Figure, str]:
    """Mean over the categories in which a figure is defined.

    Args:
        figures: one figure per category.

    Returns:
        The mean, and a sentence that names the categories left out; empty if there are none.
    """
    defined = {name: value for name, value in figures.items() if not isinstance(value, Undefined)}
    missing = sorted(set(figures) - set(defined))
    if not defined:
        reason = "not defined for any category" if figures else "no categories"
        return Undefined(reason), reason
    if not missing:
        return fmean(defined.values()), ""
    note = f"mean over {len(defined)} of {len(figures)} categories; not defined for "
    return fmean(defined.values()), note + ", ".join(missing)


def image_figures(scores: ArrayLike, is_defective: ArrayLike) -> dict[str, Figure]:
    """AUROC, average precision and F1-max of image scores, by name.

    Args:
        scores: [n] float, higher is more anomalous.
        is_defective: [n] bool.

    Returns:
        `image_auroc`: the chance that a defective image scores above a good one; `image_ap`: the step-wise
        area under the precision-recall curve; `image_f1_max`: the best F1 over all thresholds.

    Raises:
        DataError: if the two differ in length.
    """
    values, labels = _to_arrays(scores, is_defective)
    if undefined := _why_undefined(values, labels):
        return dict.fromkeys(IMAGE_NAMES, undefined)
    precision, recall, _ = precision_recall_curve(labels, values)
    total = precision + recall
    return {
        "image_auroc": float(roc_auc_score(labels, values)),
        "image_ap": float(average_precision_score(labels, values)),
        "image_f1_max": float(np.max(2 * precision * recall / np.where(total > 0, total, 1))),
    }


def verdict_figures(is_anomalous: ArrayLike, is_defective: ArrayLike) -> dict[str, Figure]:
    """Accuracy, recall and false-alarm rate of verdicts that were given at a fixed threshold.

    Args:
        is_anomalous: [n] bool, the verdicts.
        is_defective: [n] bool, the truth.

    Raises:
        DataError: if the two differ in length.
    """
    verdicts, labels = _to_arrays(is_anomalous, is_defective)
    flagged = verdicts.astype(bool)
    reasons = ("no images", "no defective images", "no good images")
    parts = (flagged == labels, flagged[labels], flagged[~labels])
    return {
        name: float(np.mean(part)) if part.size else Undefined(reason)
        for name, part, reason in zip(VERDICT_NAMES, parts, reasons, strict=True)
    }


def _to_arrays(
    scores: ArrayLike, is_defective: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = np.asarray(scores, dtype=np.float64).ravel()
    labels = np.asarray(is_defective, dtype=bool).ravel()
    if values.shape != labels.shape:
        raise DataError(f"{values.size} scores for {labels.size} images")
    return values, labels


def _why_undefined(values: NDArray[np.float64], labels: NDArray[np.bool_]) -> Undefined | None:
    if not labels.size:
        return Undefined("no images")
    if not np.isfinite(values).all():
        return Undefined("a score is not a finite number")
    if not labels.any():
        return Undefined("no defective images")
    return Undefined("no good images") if labels.all() else None
