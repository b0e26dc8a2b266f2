"""Operating points: the default's rule, what is said about it, and how a threshold is moved."""

from __future__ import annotations

import numpy as np
import pytest

from onenip.detector.operating_points import decide, find_threshold, move
from onenip.errors import DataError
from onenip.model.file import CategoryMeasurements, MapScale
from onenip.params import CalibrateParams


def measure(*, held_out=20, fitted=40, anomalies=40, distance=6.0, provisional=False, outlier=None):
    """Made-up scores of a category whose synthetic anomalies score about `distance`."""
    rng = np.random.default_rng([held_out, fitted])
    scores = rng.gumbel(size=held_out)
    if outlier is not None:
        scores[0] = outlier
    return CategoryMeasurements(
        scales={"refined": MapScale(mean=0.0, std=1.0)},
        fusion_constant=1.0,
        pixel_threshold=2.0,
        normal_names=[f"x/{i}.png" for i in range(held_out + fitted)],
        held_out_scores=scores.tolist(),
        fitted_scores=(rng.gumbel(size=fitted) - 1).tolist(),
        synthetic_scores=rng.normal(distance, 1.0, anomalies).tolist(),
        prompt_names=[],
        prompt_scores=[],
        is_provisional=provisional,
    )


def test_the_default_has_the_wanted_false_alarms():
    """Where anomalies are far away, `false_alarm_rate` places the threshold, without a warning."""
    known = decide({"x": measure(distance=20.0)}, CalibrateParams())["x"]

    assert known.operating_point.false_alarm_rate == pytest.approx(0.05, abs=0.01)
    assert known.operating_point.synthetic_recall == 1
    assert known.operating_point.threshold == known.image_threshold
    assert known.warnings == []
    rates = [point.false_alarm_rate for point in known.curve]
    assert rates == sorted(rates)


def test_false_alarms_rise_to_find_more_but_not_without_limit():
    """`min_recall` lowers the threshold down to `max_false_alarm_rate`; a warning says what is missing."""
    measured = {"x": measure(distance=2.0)}
    plain = decide(measured, CalibrateParams(min_recall=0.0))["x"]
    known = decide(measured, CalibrateParams())["x"]

    assert known.image_threshold < plain.image_threshold
    assert known.operating_point.false_alarm_rate == pytest.approx(0.1, abs=0.02)
    assert any("min_recall" in text for text in known.warnings)
    assert any("would find" in text for text in plain.warnings)


def test_an_outlier_is_named():
    """A normal image that scores far above the others is a candidate for review."""
    known = decide({"x": measure(outlier=60.0)}, CalibrateParams())["x"]

    assert "x/0.png" in known.outliers
    assert known.image_threshold < 10


def test_few_normals_say_how_little_they_know():
    """Four normals give a wide interval, and a sentence about it."""
    known = decide({"x": measure(held_out=4, fitted=0)}, CalibrateParams())["x"]

    assert known.operating_point.false_alarm_rate_high > 0.4
    assert "rests on 4 normal images" in known.warnings[0]


def test_an_added_category_changes_no_other():
    """Its few images have no say in the thresholds of trained categories."""
    trained = {"x": measure(), "y": measure(held_out=15)}
    added = measure(held_out=3, fitted=0, anomalies=0, provisional=True)

    alone = decide(trained, CalibrateParams())
    together = decide({**trained, "z": added}, CalibrateParams())

    assert together["x"] == alone["x"]
    assert together["z"].normals_needed == CalibrateParams().min_normals - 3
    assert together["x"].normals_needed == 0


def test_a_review_threshold_lies_below():
    """With `review_rate` a second threshold is kept, never above the first."""
    known = decide({"x": measure(distance=20.0)}, CalibrateParams(review_rate=0.2))["x"]

    assert known.review_threshold is not None
    assert known.review_threshold < known.image_threshold
    assert move({"x": known}, "x", -9.0).review_threshold == -9.0


def test_a_threshold_is_found_by_what_it_shall_reach():
    """By false alarms or by recall, and moving there promises just that."""
    known = decide({"x": measure(distance=3.0)}, CalibrateParams())

    by_alarms = find_threshold(known, "x", false_alarm_rate=0.2)
    by_recall = find_threshold(known, "x", recall=0.9)

    assert move(known, "x", by_alarms).operating_point.false_alarm_rate == pytest.approx(
        0.2, rel=0.1
    )
    assert move(known, "x", by_recall).operating_point.synthetic_recall == 0.9
    assert move(known, "x", by_recall).image_threshold == by_recall


@pytest.mark.parametrize("wanted", [{}, {"false_alarm_rate": 0.0}, {"recall": 1.2}])
def test_what_cannot_be_reached_is_an_error(wanted):
    """A share outside its range, or none, is refused."""
    known = decide({"x": measure()}, CalibrateParams())

    with pytest.raises(DataError):
        find_threshold(known, "x", **wanted)
