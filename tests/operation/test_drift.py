"""Drift: what moves is noticed, what does not is left in peace."""

from __future__ import annotations

import numpy as np

from onenip.operation.drift import (
    DriftMemory,
    DriftResult,
    ImageMemory,
    Sightings,
    measure_drift,
)
from onenip.params import DriftParams


def sight(count: int, *, shift: float = 0.0, alarms: int = 0, far: float = 1.0, seed: int = 0):
    """Normal images whose scores are moved by `shift` standard deviations."""
    rng = np.random.default_rng(seed)
    flagged = np.arange(count) < alarms
    return Sightings.of(rng.normal(shift, 1, count), flagged, far * rng.uniform(0.9, 1.1, count))


def test_images_like_those_at_approval_do_not_drift():
    """The same distribution passes no limit."""
    found = measure_drift(
        "disc", arrived=sight(60, alarms=2), approved=sight(50, seed=1), params=DriftParams()
    )

    assert not found.is_drifting
    assert found.alarm_share == 2 / 60


def test_each_kind_of_drift_names_itself():
    """Alarms, scores and embeddings each have a limit of their own."""
    approved = sight(50, seed=1)
    cases = {
        "called anomalous": sight(40, alarms=12),
        "distributed otherwise": sight(40, shift=3.0),
        "from the prompts": sight(40, far=6.0),
    }

    for words, arrived in cases.items():
        found = measure_drift("disc", arrived=arrived, approved=approved, params=DriftParams())
        assert len(found.reasons) == 1
        assert words in found.reasons[0]


def test_few_images_raise_no_alarm():
    """A handful of odd images is no trend."""
    arrived = sight(19, shift=9.0, alarms=19)

    assert measure_drift("disc", arrived=arrived, approved=sight(50), params=DriftParams()) is None


def test_nothing_known_of_the_approval_is_no_drift():
    """There is nothing to compare with."""
    empty = Sightings.of([], [], [])

    assert measure_drift("disc", arrived=sight(60), approved=empty, params=DriftParams()) is None


def test_people_hear_of_a_drift_once_per_champion(tmp_path):
    """Again for another champion, and after it had passed; not each hour."""

    def find(*, digest="a" * 64, reasons=("odd",)):
        return [DriftResult("disc", 40, 0.3, 0.5, 2.0, reasons, digest=digest)]

    def look(found):
        memory = DriftMemory(tmp_path / "state/drift.json")
        new = memory.choose_new(found)
        for one in new:
            memory.remember(one)
        return [one.category for one in new]

    assert [look(find()), look(find())] == [["disc"], []]
    assert look([]) == []  # too few images to measure: nothing changed
    assert look(find()) == []
    assert look(find(digest="b" * 64)) == ["disc"]
    assert [look(find(digest="b" * 64, reasons=())), look(find(digest="b" * 64))] == [[], ["disc"]]


def test_a_champion_is_asked_once_about_an_image(tmp_path):
    """Answers are kept from run to run; those that a run did not need go, and so does what is no answer."""

    def ask(image, answer):
        return memory.ask(("distance", "d" * 64, "disc", image), lambda: answer)

    memory = ImageMemory(tmp_path / "kept" / "drift.json")
    assert [ask("a", 1.0), ask("b", 2.0), ask("gone", None), ask("a", 5.0)] == [1.0, 2.0, None, 1.0]
    memory.save()
    memory = ImageMemory(tmp_path / "kept" / "drift.json")
    assert [ask("a", 5.0), ask("gone", 3.0)] == [1.0, 3.0]
    memory.save()
    memory = ImageMemory(tmp_path / "kept" / "drift.json")
    assert [ask("a", 5.0), ask("b", 5.0), ask("gone", 5.0)] == [1.0, 5.0, 3.0]
