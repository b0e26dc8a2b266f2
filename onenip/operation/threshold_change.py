"""What another threshold of a registered version would change, before anybody decides on it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onenip.detector.operating_points import describe_point, find_threshold, move
from onenip.errors import DataError, RegistryError
from onenip.evaluation.counts import VerdictCounts, describe_wrong
from onenip.evaluation.results import ImageResult, load_scores
from onenip.model.file import CategorySpec, DetectorSpec, OperatingPoint
from onenip.registry.evaluations import fetch_evaluation
from onenip.registry.tags import PREFIX, Version

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Preview:
    """A threshold beside the one that counts now.

    Attributes:
        before: what the threshold of now promises.
        after: what the other one promises.
        tested_before: verdicts on the version's own test images now; None where it has no evaluation.
        tested_after: the same with the other threshold.
        changed: test images whose verdict would change, by name.
        recent: how many recent answers there are, and how many verdicts of theirs would change.
    """

    before: OperatingPoint
    after: OperatingPoint
    tested_before: VerdictCounts | None
    tested_after: VerdictCounts | None
    changed: tuple[str, ...]
    recent: tuple[int, int]

    def describe(self) -> list[str]:
        """What changes, in lines for a person to read."""
        lines = [f"now: {describe_point(self.before)}", f"then: {describe_point(self.after)}"]
        if self.tested_before is None or self.tested_after is None:
            lines.append("test images: the version has no evaluation to count on")
        else:
            for when, counts in (("now", self.tested_before), ("then", self.tested_after)):
                wrong = describe_wrong(counts.to_dict())
                texts = ", ".join(f"{title} {text}" for title, text in wrong.items())
                lines.append(f"test images {when}: {texts}")
            lines.append(f"test images whose verdict changes: {', '.join(self.changed) or 'none'}")
        count, changed = self.recent
        if count:
            lines.append(f"recent predictions whose verdict changes: {changed} of {count}")
        return lines


def choose_value(
    spec: DetectorSpec,
    category: str,
    *,
    value: float | None,
    false_alarm_rate: float | None,
    recall: float | None,
) -> float:
    """The threshold that is asked for in one of three ways.

    Raises:
        DataError: unless exactly one is given, and in its range.
    """
    if sum(one is not None for one in (value, false_alarm_rate, recall)) != 1:
        raise DataError("give one of --false-alarms, --recall and --value")
    if value is not None:
        return value
    return find_threshold(
        spec.categories, category, false_alarm_rate=false_alarm_rate, recall=recall
    )


def preview(
    spec: DetectorSpec,
    category: str,
    threshold: float,
    *,
    tested: Sequence[ImageResult],
    recent_scores: Iterable[float] = (),
) -> Preview:
    """What a threshold would change.

    Args:
        spec: of the version's model, with the threshold that counts now.
        category: the product category.
        threshold: the other one.
        tested: the version's results on test images; empty where it has none.
        recent_scores: of answers that were given to images of the category.
    """
    known: CategorySpec = spec.categories[category]
    now = known.image_threshold
    own = [item for item in tested if item.category == category]
    scores = list(recent_scores)
    return Preview(
        before=move(spec.categories, category, now).operating_point,
        after=move(spec.categories, category, threshold).operating_point,
        tested_before=_count(own, now) if own else None,
        tested_after=_count(own, threshold) if own else None,
        changed=tuple(item.name for item in own if (item.score > now) != (item.score > threshold)),
        recent=(len(scores), sum((score > now) != (score > threshold) for score in scores)),
    )


def _count(results: Sequence[ImageResult], threshold: float) -> VerdictCounts:
    return VerdictCounts.count((item.is_defective, item.score > threshold) for item in results)


def load_tested(version: Version, folder: Path) -> list[ImageResult]:
    """Results of a version's own test images; none, and a warning, where no evaluation is kept with it.

    Args:
        version: registered.
        folder: where its evaluation is fetched to.
    """
    address = f"models:/{PREFIX}{version.category}/{version.number}"
    try:
        return load_scores(fetch_evaluation(address, folder) / "scores.csv")
    except (RegistryError, DataError) as error:
        log.warning("no test images to count on: %s", error)
        return []
