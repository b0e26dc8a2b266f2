"""The bank of synthetic anomalies: no more of them than a training asks for."""

import hashlib
from pathlib import Path

from onenip.data.labels import GOOD
from onenip.data.manifest import Sample
from onenip.detector.calibration import MAX_CALIBRATION_IMAGES
from onenip.synthesis.bank import choose_normals
from onenip.training.calibration_images import MAX_SELECTION_IMAGES, split_held_out


def make_samples(category, subset, count):
    """Normal samples of some subset; there are no files."""
    names = [f"{category}/{subset}/{number}" for number in range(count)]
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    return [
        Sample(Path(name), name, category, GOOD, subset, None, digest)
        for name, digest in zip(names, digests, strict=True)
    ]


def test_anomalies_are_drawn_in_what_a_training_asks_for():
    """Those are held-out images, fitted ones where there are none, and a bounded number of many."""
    samples = [
        *make_samples("few", "fit", 9),
        *make_samples("few", "calibration", 4),
        *make_samples("none", "fit", 3),
        *make_samples("many", "calibration", 2000),
    ]

    chosen = [samples[i] for i in choose_normals(samples)]

    assert [s for s in chosen if s.category != "many"] == samples[9:16]
    held_out = split_held_out(samples, "many", selects=True)
    asked = held_out.selection + held_out.calibration
    assert {s.name for s in chosen if s.category == "many"} == {s.name for s in asked}
    assert len(asked) == MAX_SELECTION_IMAGES + MAX_CALIBRATION_IMAGES
