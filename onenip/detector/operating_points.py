"""Operating points: the threshold of each category, what it promises, and what other thresholds would.

Everything here follows from the scores that a model file keeps, so it can be computed again from the file.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onenip.detector.thresholds import (
    Distribution,
    NormalScores,
    describe_added,
    describe_normals,
    find_outliers,
)
from onenip.errors import DataError
from onenip.model.file import CategoryMeasurements, CategorySpec, OperatingPoint
from onenip.params import CalibrateParams

CURVE_RATES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)

_NEARBY = 2.0  # times as many false alarms at which a point is called nearby
_WORTH_SAYING = 0.1  # share of synthetic anomalies that a nearby point would find in addition
_FEW_NORMALS = 20  # fewer normals than this tell little of a rate of false alarms
_ROUNDING = 1e-9
_FEW_ANOMALIES = 8  # fewer synthetic anomalies than this tell nothing of recall


def decide(
    measured: Mapping[str, CategoryMeasurements], params: CalibrateParams
) -> dict[str, CategorySpec]:
    """Operating points of all categories of a model.

    Those that were added without training have no say in the others'.

    Args:
        measured: by category.
        params: the wanted rates and their limits.

    Raises:
        DataError: if a category has no scores of normal images.
    """
    found = _describe(measured)
    return {name: _decide_one(one, found[name], params) for name, one in measured.items()}


def decide_added(
    measured: Mapping[str, CategoryMeasurements], category: str, params: CalibrateParams
) -> CategorySpec:
    """Operating points of one category, as `decide` gives them, without deciding on the others."""
    heard = {k: one for k, one in measured.items() if k == category or not one.is_provisional}
    return _decide_one(measured[category], _describe(heard)[category], params)


def move(known: Mapping[str, CategorySpec], category: str, threshold: float) -> CategorySpec:
    """A category of a model with another threshold, and what that promises.

    Args:
        known: all categories of the model.
        category: whose threshold it is.
        threshold: an image scoring above it is anomalous.
    """
    spec = known[category]
    review = spec.review_threshold
    update = {
        "image_threshold": threshold,
        "review_threshold": None if review is None else min(review, threshold),
        "operating_point": place(_describe(known)[category], spec.synthetic_scores, threshold),
    }
    return spec.model_copy(update=update)


def find_threshold(
    known: Mapping[str, CategorySpec],
    category: str,
    *,
    false_alarm_rate: float | None = None,
    recall: float | None = None,
) -> float:
    """The threshold at which a category has a wanted share of false alarms, or of anomalies found.

    Args:
        known: all categories of the model.
        category: one of them.
        false_alarm_rate: wanted share of normal images called anomalous, above 0 and below 1.
        recall: wanted share of synthetic anomalies found, 0 to 1, where no false-alarm rate is given.

    Raises:
        DataError: if neither is given or one is out of its range, or the category has no synthetic anomalies.
    """
    if false_alarm_rate is not None:
        if not 0 < false_alarm_rate < 1:
            raise DataError(f"a false-alarm rate is above 0 and below 1, not {false_alarm_rate:g}")
        return _describe(known)[category].threshold(false_alarm_rate)
    if recall is None or not 0 <= recall <= 1:
        raise DataError(f"a recall is 0 to 1, not {recall}")
    anomalies = known[category].synthetic_scores
    if not anomalies:
        raise DataError(f"{category}: the model has no synthetic anomalies to tell recall by")
    return _find_recall(np.sort(anomalies), recall)


def place(normals: Distribution, synthetic_scores: list[float], threshold: float) -> OperatingPoint:
    """What a threshold promises."""
    low, high = normals.interval(threshold)
    anomalies = np.array(synthetic_scores)
    return OperatingPoint(
        threshold=threshold,
        false_alarm_rate=normals.false_alarm_rate(threshold),
        false_alarm_rate_low=low,
        false_alarm_rate_high=high,
        synthetic_recall=float((anomalies > threshold).mean()) if anomalies.size else None,
    )


def choose_threshold(
    normals: Distribution, synthetic_scores: list[float], params: CalibrateParams
) -> float:
    """Threshold of the wanted false-alarm rate; a lower one where that finds too little.

    Where fewer synthetic anomalies than `min_recall` would be found, false alarms may rise up to
    `max_false_alarm_rate` to find them.
    """
    wanted = normals.threshold(params.false_alarm_rate)
    anomalies = np.sort(synthetic_scores)
    if len(anomalies) < _FEW_ANOMALIES or params.max_false_alarm_rate <= params.false_alarm_rate:
        return wanted
    needed = _find_recall(anomalies, params.min_recall)
    return min(wanted, max(needed, normals.threshold(params.max_false_alarm_rate)))


def _find_recall(anomalies: NDArray[np.float64], recall: float) -> float:
    """The highest threshold above which a share `recall` of ascending scores lies."""
    missed = min(int((1 - recall) * len(anomalies) + _ROUNDING), len(anomalies) - 1)
    return float(np.nextafter(anomalies[missed], -np.inf))


def _describe(measured: Mapping[str, CategoryMeasurements]) -> dict[str, Distribution]:
    """Distribution of the normals' scores of each category."""
    scores = {
        name: NormalScores.of(one.held_out_scores, one.fitted_scores)
        for name, one in measured.items()
    }
    trained = {name: s for name, s in scores.items() if not measured[name].is_provisional}
    found = describe_normals(trained)
    for name, one in measured.items():
        if one.is_provisional:
            are_copies = len(one.held_out_scores) > len(one.normal_names)
            found[name] = describe_added(scores[name], trained, are_copies=are_copies)
    return found


def _decide_one(
    measured: CategoryMeasurements, normals: Distribution, params: CalibrateParams
) -> CategorySpec:
    synthetic = measured.synthetic_scores
    threshold = choose_threshold(normals, synthetic, params)
    chosen = place(normals, synthetic, threshold)
    names = np.array(measured.normal_names)
    review = None
    if params.review_rate is not None:
        review = min(normals.threshold(params.review_rate), threshold)
    return CategorySpec(
        **{key: getattr(measured, key) for key in CategoryMeasurements.model_fields},
        image_threshold=threshold,
        review_threshold=review,
        min_normals=params.min_normals if measured.is_provisional else 1,
        operating_point=chosen,
        curve=[place(normals, synthetic, normals.threshold(rate)) for rate in CURVE_RATES],
        normal_scores=normals.scores.tolist(),
        outliers=names[: len(normals.scores)][find_outliers(normals.scores)].tolist(),
        warnings=_warn(measured, chosen, normals, params),
    )


def _warn(
    measured: CategoryMeasurements,
    chosen: OperatingPoint,
    normals: Distribution,
    params: CalibrateParams,
) -> list[str]:
    """What a person should know before relying on a threshold."""
    warnings = []
    count = len(measured.normal_names)
    if count < _FEW_NORMALS:
        warnings.append(
            f"the threshold rests on {count} normal images: of further ones "
            f"{chosen.false_alarm_rate_low:.0%} to {chosen.false_alarm_rate_high:.0%} may be called "
            "anomalous"
        )
    recall = chosen.synthetic_recall
    if recall is None or len(measured.synthetic_scores) < _FEW_ANOMALIES:
        return warnings
    rate = _NEARBY * max(chosen.false_alarm_rate, params.false_alarm_rate)
    nearby = place(normals, measured.synthetic_scores, normals.threshold(min(rate, 0.9)))
    gained = (nearby.synthetic_recall or 0.0) - recall
    if gained >= _WORTH_SAYING:
        warnings.append(
            f"finds {recall:.0%} of synthetic anomalies at {chosen.false_alarm_rate:.1%} false alarms; "
            f"the threshold {nearby.threshold:.4g} would find {nearby.synthetic_recall:.0%} at "
            f"{nearby.false_alarm_rate:.1%}"
        )
    if recall < params.min_recall:
        warnings.append(
            f"finds {recall:.0%} of synthetic anomalies, fewer than calibrate.min_recall "
            f"({params.min_recall:.0%}), within calibrate.max_false_alarm_rate"
        )
    return warnings


def describe_doubts(known: CategorySpec) -> list[str]:
    """Warnings of a category and its outliers, a sentence each."""
    named = ", ".join(known.outliers)
    outliers = (
        [f"score far above the other normal images, to be reviewed: {named}"] if named else []
    )
    return [*known.warnings, *outliers]


def describe_point(point: OperatingPoint) -> str:
    """A threshold and its promises, in one line."""
    found = (
        ""
        if point.synthetic_recall is None
        else (f", finds {point.synthetic_recall:.0%} of synthetic anomalies")
    )
    return (
        f"threshold {point.threshold:.4g}, false alarms {point.false_alarm_rate:.1%} expected "
        f"({point.false_alarm_rate_low:.1%} to {point.false_alarm_rate_high:.1%}){found}"
    )
