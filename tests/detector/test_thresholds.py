"""Thresholds: what they promise with many normals, with few, with an outlier, with fitted ones."""

from __future__ import annotations

import numpy as np
import pytest

from onenip.detector.thresholds import (
    NormalScores,
    binomial_interval,
    describe_added,
    describe_normals,
    find_outliers,
)
from onenip.errors import DataError


def draw_scores(rng, count):
    """Scores as maps give them: maxima, skewed to the right."""
    return rng.gumbel(size=count)


@pytest.mark.parametrize(("held_out", "fitted"), [(9, 30), (20, 40), (60, 0), (0, 40)])
def test_a_further_normal_is_flagged_about_as_often_as_promised(held_out, fitted):
    """Over many draws, with fitted normals that score lower, the share above the threshold is the rate's."""
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(60):
        categories = {
            str(i): NormalScores.of(
                draw_scores(rng, held_out), 0.7 * draw_scores(rng, fitted) - 0.5
            )
            for i in range(4)
        }
        found = describe_normals(categories)["0"]
        rates.append(np.mean(draw_scores(rng, 500) > found.threshold(0.05)))

    assert 0.02 < np.mean(rates) < 0.09 + 0.1 * (held_out == 0)


def test_one_outlier_among_nine_moves_the_threshold_little():
    """An outlier is named; the threshold stays where the others put it."""
    rng = np.random.default_rng(1)
    others = {str(i): NormalScores.of(draw_scores(rng, 40)) for i in range(3)}
    usual = draw_scores(rng, 9)
    spoiled = usual.copy()
    spoiled[0] = 40.0

    before = describe_normals({**others, "x": NormalScores.of(usual)})["x"]
    after = describe_normals({**others, "x": NormalScores.of(spoiled)})["x"]

    assert find_outliers(spoiled).tolist() == [True] + [False] * 8
    assert abs(after.threshold(0.05) - before.threshold(0.05)) < 2.5
    assert after.threshold(0.05) < 10


def test_fewer_normals_promise_less():
    """The interval of the false-alarm rate is wide with four normals, narrower with forty."""
    rng = np.random.default_rng(2)
    widths = []
    for count in (4, 10, 40, 400):
        found = describe_normals({"x": NormalScores.of(draw_scores(rng, count))})["x"]
        low, high = found.interval(found.threshold(0.05))
        assert low <= 0.05 <= high
        widths.append(high - low)

    assert widths == sorted(widths, reverse=True)


def test_the_expected_rate_is_the_inverse_of_the_threshold():
    """A threshold of a rate is expected to alarm at that rate; higher ones alarm less."""
    rng = np.random.default_rng(3)
    found = describe_normals({"x": NormalScores.of(draw_scores(rng, 50))})["x"]

    for rate in (0.03, 0.05, 0.2, 0.5):
        assert found.false_alarm_rate(found.threshold(rate)) == pytest.approx(rate, rel=0.1)
    assert found.false_alarm_rate(1e9) == 0


def test_a_lone_image_takes_its_spread_from_the_other_categories():
    """Copies of one image tell no spread; with more images their own counts more and more."""
    rng = np.random.default_rng(4)
    others = {str(i): NormalScores.of(2 * draw_scores(rng, 60)) for i in range(3)}

    copies = describe_added(NormalScores.of([1.0, 1.01, 1.02]), others, are_copies=True)
    many = describe_added(NormalScores.of(0.1 * draw_scores(rng, 40)), others, are_copies=False)

    assert copies.threshold(0.05) > 4
    assert many.threshold(0.05) < 1.5


def test_equal_scores_are_no_error():
    """Scores without any spread give a threshold that none of them exceeds."""
    found = describe_normals({"x": NormalScores.of([4.0] * 8, [3.0] * 8)})["x"]

    assert found.threshold(0.05) >= 4


def test_intervals_are_exact():
    """No alarm among nine is not no alarm at all."""
    assert binomial_interval(0, 9) == (0.0, pytest.approx(0.336, abs=1e-3))
    assert binomial_interval(9, 9)[1] == 1


@pytest.mark.parametrize("scores", [[], [np.nan], [1.0, np.inf]])
def test_nothing_to_choose_from_is_an_error(scores):
    """No scores, or scores that are no numbers, are refused with a reason."""
    with pytest.raises(DataError):
        NormalScores.of(scores)
