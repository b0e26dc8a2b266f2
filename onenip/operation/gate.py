"""The gate: whether a challenger may replace the champion of one category.

Pure: takes the answers of both models on the same images and gives a verdict with its reasons, as
the registry keeps it with a version. Reads no models and no files.

A check that fails beyond doubt rejects; one that the images cannot decide holds, for a person to
look; only if every check passes is the verdict to promote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from onenip.detector.thresholds import binomial_interval
from onenip.errors import DataError
from onenip.evaluation.comparison import difference_of, paired_difference
from onenip.evaluation.metrics import (
    IMAGE_NAMES,
    PIXEL_NAMES,
    Figure,
    Undefined,
    image_figures,
    verdict_figures,
)
from onenip.params import CategoryGateParams, GateParams
from onenip.registry.tags import GateResult, GateVerdict

_SEVERITY: tuple[GateVerdict, ...] = ("promote", "hold", "reject")


@dataclass(frozen=True)
class Answers:
    """What one model says of a category's images.

    Attributes:
        scores: [n] float64, image scores.
        is_anomalous: [n] bool, its verdicts by its own threshold.
        seconds: [n] float64, wall-clock time that each image took.
        pixel_figures: pixel figures on the test images, by name; empty if they were not asked for.
        pixel_draws: [draws] float64 of each pixel figure, the same draws for both models.
    """

    scores: NDArray[np.float64]
    is_anomalous: NDArray[np.bool_]
    seconds: NDArray[np.float64]
    pixel_figures: Mapping[str, Figure] = field(default_factory=dict)
    pixel_draws: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """What both models say of the same images.

    Attributes:
        category: the product category.
        is_defective: [n] bool, the truth.
        is_compared: [n] bool, images that figures of merit are computed on: the test set, or normal
            images and synthetic anomalies where the test set has no defects.
        is_synthetic: whether the defects are synthetic, for want of real ones.
        normals: where the normal images come from, in words.
        is_held_out: whether the models were fitted or calibrated to none of the normal images.
        challenger: the new model's answers.
        champion: the serving model's answers, None if there is none for this category.
        groups: [n] int, the same for synthetic anomalies that were drawn into the same image; None if
            each image stands alone.
    """

    category: str
    is_defective: NDArray[np.bool_]
    is_compared: NDArray[np.bool_]
    is_synthetic: bool
    normals: str
    is_held_out: bool
    challenger: Answers
    champion: Answers | None
    groups: NDArray[np.int64] | None = None

    @property
    def defects(self) -> int:
        """Defective images that do not depend on each other."""
        if self.groups is None:
            return int(self.is_defective.sum())
        return int(np.unique(self.groups[self.is_defective]).size)


@dataclass(frozen=True)
class Finding:
    """Outcome of one check: a verdict, a sentence, and the numbers behind it."""

    verdict: GateVerdict
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict)


def judge(evidence: Evidence, params: GateParams, *, seed: int, judged_at: datetime) -> GateResult:
    """Verdict on one category.

    Args:
        evidence: what both models say of the same images.
        params: limits, with the category's own where there are any.
        seed: of the bootstrap; the same evidence and seed give the same verdict.
        judged_at: UTC.

    Raises:
        DataError: if the evidence's parts are not about the same images.
    """
    _require_same_images(evidence)
    limits = params.limits_of(evidence.category)
    findings = [
        *_check_floors(evidence, limits),
        *_check_defects(evidence, limits),
        *_check_margins(evidence, limits, params=params, seed=seed),
        _check_false_alarms(evidence, limits, params=params),
        *_check_latency(evidence, limits),
    ]
    if evidence.is_synthetic:
        sentence = (
            "the test set has no defective images; judged on normal images and synthetic anomalies"
        )
        findings.append(Finding("promote", sentence))
    findings.sort(key=lambda finding: -_SEVERITY.index(finding.verdict))
    return GateResult(
        verdict=findings[0].verdict,
        reasons=tuple(finding.reason for finding in findings),
        is_provisional=evidence.is_synthetic,
        numbers={key: value for finding in findings for key, value in finding.numbers.items()},
        judged_at=judged_at,
    )


def undecidable(reason: str, *, judged_at: datetime) -> GateResult:
    """A `hold` verdict for a category without images to judge."""
    return GateResult(verdict="hold", reasons=(reason,), is_provisional=True, judged_at=judged_at)


def _require_same_images(evidence: Evidence) -> None:
    size = evidence.is_defective.shape
    models = [model for model in (evidence.challenger, evidence.champion) if model is not None]
    parts = [evidence.is_compared] + [
        part for model in models for part in (model.scores, model.is_anomalous, model.seconds)
    ]
    if any(part.shape != size for part in parts):
        shapes = ", ".join(str(part.shape) for part in parts)
        raise DataError(f"{evidence.category}: evidence of {size} images with parts of {shapes}")


def _figures(evidence: Evidence, answers: Answers) -> dict[str, Figure]:
    chosen = evidence.is_compared
    labels = evidence.is_defective[chosen]
    return {
        **image_figures(answers.scores[chosen], labels),
        **verdict_figures(answers.is_anomalous[chosen], labels),
        **answers.pixel_figures,
    }


def _check_floors(evidence: Evidence, limits: CategoryGateParams) -> list[Finding]:
    """Absolute floors, whatever the champion does."""
    floors = limits.synthetic_floors if evidence.is_synthetic else limits.floors
    figures = _figures(evidence, evidence.challenger)
    findings = []
    for name, floor in (floors or {}).items():
        value = figures.get(name, Undefined("it was not measured"))
        if isinstance(value, Undefined):
            findings.append(Finding("hold", f"{name} is not defined: {value.reason}"))
            continue
        is_met = value >= floor
        sentence = f"{name} {value:.3f} {'reaches' if is_met else 'is below'} the floor {floor:g}"
        findings.append(Finding("promote" if is_met else "reject", sentence, {name: value}))
    return findings


def _check_defects(evidence: Evidence, limits: CategoryGateParams) -> list[Finding]:
    """Enough defective images to say anything about them."""
    assert limits.min_defects is not None
    count = evidence.defects
    if count >= limits.min_defects:
        return []
    kind = (
        "images to draw synthetic anomalies into" if evidence.is_synthetic else "defective images"
    )
    return [Finding("hold", f"only {count} {kind}, at least {limits.min_defects} are needed")]


def _check_margins(
    evidence: Evidence, limits: CategoryGateParams, *, params: GateParams, seed: int
) -> list[Finding]:
    """No worse than the champion, by the paired bootstrap interval of the difference."""
    if evidence.champion is None:
        return [Finding("promote", "there is no champion yet")]
    findings = []
    for name, margin in (limits.margins or {}).items():
        difference = _compare(evidence, name, params=params, seed=seed)
        change, low, high = difference
        if (
            isinstance(change, Undefined)
            or isinstance(low, Undefined)
            or isinstance(high, Undefined)
        ):
            missing = next(end for end in difference if isinstance(end, Undefined))
            findings.append(Finding("hold", f"{name} cannot be compared: {missing.reason}"))
            continue
        numbers = {f"{name}_change": change, f"{name}_low": low, f"{name}_high": high}
        text = f"{name} changes by {change:+.3f} (between {low:+.3f} and {high:+.3f})"
        if low >= -margin:
            finding = Finding("promote", f"{text}: no worse than the champion", numbers)
        elif high < -margin:
            finding = Finding("reject", f"{text}: worse by more than {margin:g}", numbers)
        else:
            sentence = (
                f"{text}: could be worse by more than {margin:g}, the images do not decide it"
            )
            finding = Finding("hold", sentence, numbers)
        findings.append(finding)
    return findings


def _compare(
    evidence: Evidence, name: str, *, params: GateParams, seed: int
) -> tuple[Figure, Figure, Figure]:
    """Challenger minus champion, and the ends of its interval."""
    first, second = evidence.champion, evidence.challenger
    assert first is not None
    if name in PIXEL_NAMES:
        missing = Undefined("it was not measured")
        values = [answers.pixel_figures.get(name, missing) for answers in (first, second)]
        draws = [answers.pixel_draws.get(name) for answers in (first, second)]
        changes = np.empty(0)
        if draws[0] is not None and draws[1] is not None:
            changes = draws[1] - draws[0]
        if not changes.size:
            return missing, missing, missing
        found = difference_of(name, values[0], values[1], changes, confidence=params.confidence)
    else:
        chosen = evidence.is_compared
        take: Callable[[Answers], NDArray[np.float64]] = (
            (lambda answers: answers.scores[chosen])
            if name in IMAGE_NAMES
            else (lambda answers: answers.is_anomalous[chosen].astype(np.float64))
        )
        found = paired_difference(
            take(first),
            take(second),
            evidence.is_defective[chosen],
            name,
            confidence=params.confidence,
            draws=params.draws,
            seed=seed,
            groups=None if evidence.groups is None else evidence.groups[chosen],
        )
    return found.difference, found.low, found.high


def _check_false_alarms(
    evidence: Evidence, limits: CategoryGateParams, *, params: GateParams
) -> Finding:
    """Share of normal images called anomalous, with its exact binomial interval."""
    normal = ~evidence.is_defective
    alarms, count = int(evidence.challenger.is_anomalous[normal].sum()), int(normal.sum())
    limit = limits.max_false_alarm_rate
    assert limit is not None
    assert limits.min_normals is not None
    if count < limits.min_normals:
        sentence = f"only {count} normal images ({evidence.normals}) to count false alarms on"
        return Finding("hold", f"{sentence}, at least {limits.min_normals} are needed")
    low, high = binomial_interval(alarms, count, confidence=params.confidence)
    numbers = {
        "false_alarm_rate": alarms / count,
        "false_alarm_rate_low": low,
        "false_alarm_rate_high": high,
    }
    text = f"{alarms} false alarms on {count} normal images ({evidence.normals})"
    if low > limit:
        return Finding("reject", f"{text}: certainly more than {limit:.0%}", numbers)
    if alarms / count > limit:
        return Finding("hold", f"{text}: more than {limit:.0%}, but it may be chance", numbers)
    assert limits.false_alarm_margin is not None
    bound = limit + limits.false_alarm_margin
    if high > bound:
        sentence = (
            f"{text}: the rate may be as high as {high:.0%}, more than {bound:.0%}; more "
            "normal images decide it"
        )
        return Finding("hold", sentence, numbers)
    if not evidence.is_held_out:
        sentence = (
            f"{text}, but the thresholds rest on those images; test/good, or data.holdout_fraction, "
            "gives others"
        )
        return Finding("hold", sentence, numbers)
    sentence = f"{text}: at most {limit:.0%}, with certainty at most {high:.0%}"
    return Finding("promote", sentence, numbers)


def _check_latency(evidence: Evidence, limits: CategoryGateParams) -> list[Finding]:
    """Median time an image: under the limit, and not much slower than the champion."""
    assert limits.max_seconds is not None
    assert limits.max_slowdown is not None
    seconds = float(np.median(evidence.challenger.seconds))
    is_fast = seconds <= limits.max_seconds
    sentence = (
        f"{seconds:.3f} s an image, {'within' if is_fast else 'above'} {limits.max_seconds:g} s"
    )
    findings = [Finding("promote" if is_fast else "reject", sentence, {"seconds": seconds})]
    if evidence.champion is not None:
        slowdown = float(np.median(evidence.challenger.seconds / evidence.champion.seconds))
        is_near = slowdown <= limits.max_slowdown
        sentence = f"takes {slowdown:.2f} times as long as the champion"
        if not is_near:
            sentence += f", more than {limits.max_slowdown:g}"
        finding = Finding("promote" if is_near else "hold", sentence, {"slowdown": slowdown})
        findings.append(finding)
    return findings
