"""Evidence for the gate from real detectors on real files."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from onenip.operation.evidence import collect_evidence
from onenip.operation.gate import judge
from tests.tiny import list_samples


def test_both_models_answer_for_the_same_images(tiny_detector, tiny_data, tiny_params):
    """A model compared with itself differs nowhere, image by image and pixel by pixel."""
    samples = list_samples(tiny_data, tiny_params)

    evidence = collect_evidence(
        "disc",
        challenger=tiny_detector,
        champion=tiny_detector,
        samples=samples,
        params=tiny_params,
    )

    assert evidence.is_defective.tolist() == [False] * 3 + [True] * 3
    assert not evidence.is_synthetic
    assert np.array_equal(evidence.challenger.scores, evidence.champion.scores)
    result = judge(evidence, tiny_params.gate, seed=0, judged_at=datetime.now(tz=UTC))
    assert result.numbers["image_auroc_low"] == 0
    assert result.numbers["pixel_auroc_low"] == result.numbers["pixel_auroc_high"] == 0


def test_a_category_without_defects_is_judged_on_synthetic_ones(
    tiny_detector, tiny_data, tiny_params
):
    """Anomalies are drawn into the normal images, the same ones each time."""
    samples = [s for s in list_samples(tiny_data, tiny_params) if not s.is_defective]

    first, second = (
        collect_evidence(
            "disc", challenger=tiny_detector, champion=None, samples=samples, params=tiny_params
        )
        for _ in range(2)
    )

    assert first.is_synthetic
    assert first.is_defective.sum() == 2 * 3
    assert np.array_equal(first.challenger.scores, second.challenger.scores)


def test_calibration_images_do_not_count_as_held_out(tiny_detector, tiny_data, tiny_params):
    """Without test images and hold-out, the thresholds' own images are all there is, and that is said."""
    samples = [s for s in list_samples(tiny_data, tiny_params) if s.subset != "test"]

    evidence = collect_evidence(
        "disc", challenger=tiny_detector, champion=None, samples=samples, params=tiny_params
    )

    assert not evidence.is_held_out
    assert evidence.normals == "calibration"


def test_a_category_without_images_gives_no_evidence(tiny_detector, tiny_params):
    """There is nothing to judge by."""
    evidence = collect_evidence(
        "disc", challenger=tiny_detector, champion=None, samples=[], params=tiny_params
    )

    assert evidence is None
