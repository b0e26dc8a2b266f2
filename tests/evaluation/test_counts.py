"""Counts of wrong verdicts: exact intervals, and the text that people read."""

import pytest
from scipy import stats

from onenip.evaluation.counts import (
    VerdictCounts,
    binomial_interval,
    describe_share,
    describe_wrong,
)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize(("events", "count"), [(0, 9), (9, 9), (3, 63), (1, 2), (50, 1000)])
def test_intervals_are_those_of_clopper_and_pearson(events, count, confidence):
    """The same ends as scipy's exact binomial interval."""
    expected = stats.binomtest(events, count).proportion_ci(confidence)

    assert binomial_interval(events, count, confidence=confidence) == pytest.approx(expected)


def test_few_images_say_how_little_they_know():
    """No alarm among nine images is no promise of no alarm; without images nothing is said."""
    assert describe_share(0, 9) == "0 of 9 (0 to 34 %)"
    assert describe_share(3, 63) == "3 of 63 (1.0 to 13 %)"
    assert describe_share(0, 0) == "none to count"


def test_counts_are_made_added_and_described():
    """A pair of truth and verdict per image; figures of a version give the text of both."""
    counts = VerdictCounts.count([(True, False), (True, True), (False, True), (False, False)])

    assert counts == VerdictCounts(missed=1, defective=2, false_alarms=1, good=2)
    assert counts + counts == VerdictCounts(2, 4, 2, 4)
    assert describe_wrong({"image_auroc": 0.9, **counts.to_dict()}) == {
        "defects missed": "1 of 2 (1.3 to 99 %)",
        "false alarms": "1 of 2 (1.3 to 99 %)",
    }
    assert set(describe_wrong({"image_auroc": 0.9}).values()) == {"-"}
