"""Figures of one score, and of one verdict, per image; scikit-learn does the counting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from onenip.errors import DataError
from onenip.evaluation.metrics.figures import IMAGE_NAMES, VERDICT_NAMES, Figure, Undefined


def image_auroc(scores: ArrayLike, is_defective: ArrayLike) -> Figure:
    """Area under the ROC curve: the chance that a defective image scores above a good one.

    Args:
        scores: [n] float, higher is more anomalous.
        is_defective: [n] bool.

    Raises:
        DataError: if the two differ in length.
    """
    values, labels = _to_arrays(scores, is_defective)
    return _why_undefined(values, labels) or float(roc_auc_score(labels, values))


def image_ap(scores: ArrayLike, is_defective: ArrayLike) -> Figure:
    """Average precision, the step-wise area under the precision-recall curve; as `image_auroc`."""
    values, labels = _to_arrays(scores, is_defective)
    return _why_undefined(values, labels) or float(average_precision_score(labels, values))


def image_f1_max(scores: ArrayLike, is_defective: ArrayLike) -> Figure:
    """Best F1 over all thresholds, which no deployed threshold can beat; as `image_auroc`."""
    values, labels = _to_arrays(scores, is_defective)
    if undefined := _why_undefined(values, labels):
        return undefined
    precision, recall, _ = precision_recall_curve(labels, values)
    total = precision + recall
    return float(np.max(2 * precision * recall / np.where(total > 0, total, 1)))


def image_figures(scores: ArrayLike, is_defective: ArrayLike) -> dict[str, Figure]:
    """All figures of image scores, by name; arguments as `image_auroc`."""
    functions = (image_auroc, image_ap, image_f1_max)
    return {
        name: function(scores, is_defective)
        for name, function in zip(IMAGE_NAMES, functions, strict=True)
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
    scores: ArrayLike | Sequence[float], is_defective: ArrayLike
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
    if labels.all():
        return Undefined("no good images")
    return None
