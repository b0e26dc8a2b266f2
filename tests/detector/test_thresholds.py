"""Thresholds: what they promise with many normals, with few, and with ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onenip.detector.thresholds import false_alarm_threshold
from onenip.errors import DataError


@pytest.mark.parametrize("count", [10, 49, 60, 400])
def test_a_further_normal_is_flagged_no_more_often_than_promised(count):
    """Over many draws of normals, the share of further ones above the threshold keeps the rate."""
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(400):
        threshold = false_alarm_threshold(rng.normal(size=count), 0.05)
        rates.append(np.mean(rng.normal(size=500) > threshold))

    assert np.mean(rates) <= 0.055


@settings(deadline=None)
@given(
    scores=st.lists(st.integers(0, 5), min_size=1, max_size=80),
    rate=st.sampled_from([0.02, 0.1, 0.3]),
)
def test_ties_never_cost_more_false_alarms(scores, rate):
    """Of the normals themselves, no larger share than the rate lies above the threshold."""
    threshold = false_alarm_threshold(scores, rate)

    assert np.mean(np.array(scores) > threshold) <= rate


def test_few_normals_are_extrapolated_and_one_is_itself():
    """Ten normals cannot promise 2 % by their order, so the threshold lies above all of them."""
    scores = np.arange(10.0)

    assert false_alarm_threshold(scores, 0.02) > 9
    assert false_alarm_threshold([4.0], 0.02) == 4
    assert false_alarm_threshold([4.0, 4.0, 4.0], 0.02) == 4


@pytest.mark.parametrize("scores", [[], [np.nan], [1.0, np.inf]])
def test_nothing_to_choose_from_is_an_error(scores):
    """No scores, or scores that are no numbers, are refused with a reason."""
    with pytest.raises(DataError):
        false_alarm_threshold(scores, 0.1)
