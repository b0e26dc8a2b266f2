"""What the threshold of a registered version does on its test images, and what another would change."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from onenip.detector.operating_points import describe_point, find_threshold, move
from onenip.errors import DataError, RegistryError
from onenip.evaluation.counts import COUNT_NAMES, VerdictCounts, describe_wrong
from onenip.evaluation.metrics import VERDICT_NAMES, Undefined, verdict_figures
from onenip.evaluation.results import ImageResult
from onenip.model.file import CategorySpec, DetectorSpec, OperatingPoint
from onenip.registry.evaluations import fetch_scores
from onenip.registry.tags import Version

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


def load_tested(version: Version) -> list[ImageResult]:
    """Results of a version's own test images, at the threshold that counts now.

    None, and a warning, where no evaluation is kept with it.

    Args:
        version: registered.
    """
    return _choose(_fetch(version.run_id), version)


def recount(versions: Iterable[Version]) -> list[Version]:
    """Versions whose figures of verdicts are those at the threshold that counts now.

    Where a threshold was decided, the scores of the version's own evaluation are counted again, each run's
    fetched once; without an evaluation these figures are left out.
    """
    fetch = cache(_fetch)
    return [
        one if one.threshold is None else count_again(one, _choose(fetch(one.run_id), one))
        for one in versions
    ]


def count_again(version: Version, tested: Sequence[ImageResult]) -> Version:
    """A version with the figures of verdicts that `load_tested` gives, if a threshold was decided on."""
    if version.threshold is None:
        return version
    names = {*COUNT_NAMES, *VERDICT_NAMES}
    metrics = {name: value for name, value in version.metrics.items() if name not in names}
    if tested:
        truths = [one.is_defective for one in tested]
        verdicts = [one.is_anomalous for one in tested]
        metrics |= VerdictCounts.count(zip(truths, verdicts, strict=True)).to_dict()
        found = verdict_figures(verdicts, truths)
        metrics |= {k: v for k, v in found.items() if not isinstance(v, Undefined)}
    return version.model_copy(update={"metrics": metrics})


def _choose(results: Sequence[ImageResult], version: Version) -> list[ImageResult]:
    """A version's own results, under the threshold that somebody decided on, if anybody did."""
    own = [one for one in results if one.category == version.category]
    value = version.threshold
    return own if value is None else [replace(one, threshold=value) for one in own]


def _fetch(run_id: str) -> list[ImageResult]:
    try:
        return fetch_scores(run_id)
    except (RegistryError, DataError) as error:
        log.warning("no test images to count on: %s", error)
        return []
