"""Checking what a model says of itself: all that can be recomputed, recomputed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from onenip.detector import Detector
from onenip.images import hash_file, load_image
from onenip.thresholds import false_alarm_threshold

_RELATIVE = 1e-3  # scores on another processor differ in their last digits
_ABSOLUTE = 1e-3


@dataclass(frozen=True)
class Finding:
    """One fact of a model.

    Attributes:
        fact: what was checked.
        agrees: whether it does; None where it could not be checked.
        detail: stated and recomputed values, or why it could not be checked.
    """

    fact: str
    agrees: bool | None
    detail: str


def verify_model(
    folder: Path, *, data_dir: Path | None = None, expected_digest: str | None = None
) -> list[Finding]:
    """Recompute a model's digest, thresholds and scores.

    Args:
        folder: of the model.
        data_dir: the data that it was calibrated on; without it, calibration scores are not rechecked.
        expected_digest: what the digest should be, such as the one pinned at approval.

    Raises:
        CheckpointError: if the model cannot be read at all.
    """
    detector = Detector.load(folder)
    findings = [_check_digest(detector, expected_digest)]
    for name in detector.categories:
        findings.append(_check_threshold(detector, name))
        findings.append(_check_prompts(detector, name))
    findings += _check_calibration(detector, data_dir)
    for key in ("data_version", "git_commit", "params", "approver"):
        stated = detector.spec.provenance.get(key)
        if stated is None:
            findings.append(Finding(f"names its {key}", None, "not stated in the model"))
    return findings


def _check_digest(detector: Detector, expected: str | None) -> Finding:
    if expected is None:
        return Finding("digest", None, f"{detector.digest}; give --digest to compare")
    return Finding("digest", detector.digest == expected, f"{detector.digest}, expected {expected}")


def _check_threshold(detector: Detector, name: str) -> Finding:
    known = detector.spec.categories[name]
    rate = detector.spec.calibrate.false_alarm_rate
    recomputed = false_alarm_threshold(known.normal_scores, rate)
    return _compare(f"{name}: threshold from its normals", known.image_threshold, recomputed)


def _check_prompts(detector: Detector, name: str) -> Finding:
    known = detector.spec.categories[name]
    found = [p.score for p in detector.predict(list(detector.prompt_images(name)), category=name)]
    agree = len(found) == len(known.prompt_scores) and all(
        math.isclose(a, b, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
        for a, b in zip(found, known.prompt_scores, strict=False)
    )
    stated = ", ".join(f"{x:.4f}" for x in known.prompt_scores)
    detail = f"stated {stated}; now {', '.join(f'{x:.4f}' for x in found)}"
    return Finding(f"{name}: scores of its stored prompts", agree, detail)


def _check_calibration(detector: Detector, data_dir: Path | None) -> list[Finding]:
    """Scores of the held-out normals that the thresholds rest on, from the images themselves."""
    images: dict[str, str] = detector.spec.provenance.get("calibration_images", {})
    if data_dir is None or not images:
        why = "give --data to recompute them" if images else "the model lists no images"
        return [Finding("scores of calibration images", None, why)]
    findings = []
    for name, known in detector.spec.categories.items():
        own = [n for n in images if n.split("/", 1)[0] == name]
        if known.calibrated_on != "calibration":
            why = f"calibrated on {known.calibrated_on}"
            findings.append(Finding(f"{name}: scores of calibration images", None, why))
            continue
        changed = [
            n for n in own if not (data_dir / n).is_file() or hash_file(data_dir / n) != images[n]
        ]
        if changed:
            detail = f"missing or changed: {', '.join(changed)}"
            findings.append(Finding(f"{name}: calibration images", agrees=False, detail=detail))
            continue
        scores = [
            p.score
            for p in detector.predict([load_image(data_dir / n) for n in own], category=name)
        ]
        worst = max(
            (abs(a - b) for a, b in zip(scores, known.normal_scores, strict=False)), default=0.0
        )
        agree = len(scores) == len(known.normal_scores) and worst < _ABSOLUTE * 10
        detail = f"{len(own)} images, largest difference {worst:.2g}"
        findings.append(Finding(f"{name}: scores of calibration images", agree, detail))
    return findings


def _compare(fact: str, stated: float, recomputed: float) -> Finding:
    agrees = math.isclose(stated, recomputed, rel_tol=1e-6, abs_tol=1e-9)
    return Finding(fact, agrees, f"stated {stated:.6g}, recomputed {recomputed:.6g}")
