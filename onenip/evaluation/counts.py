"""Missed defects and false alarms, as counts with exact intervals: the figures that decide.

Knows neither images nor models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Self

from onenip.detector.thresholds import CONFIDENCE, binomial_interval

COUNT_NAMES = ("missed", "defective", "false_alarms", "good")


@dataclass(frozen=True)
class VerdictCounts:
    """Wrong verdicts of a model on labelled images.

    Attributes:
        missed: defective images that it calls normal.
        defective: all defective images.
        false_alarms: good images that it calls anomalous.
        good: all good images.
    """

    missed: int
    defective: int
    false_alarms: int
    good: int

    @classmethod
    def count(cls, verdicts: Iterable[tuple[bool, bool]]) -> Self:
        """Counts of pairs (is defective, is called anomalous)."""
        pairs = list(verdicts)
        defective = [called for truth, called in pairs if truth]
        good = [called for truth, called in pairs if not truth]
        return cls(len(defective) - sum(defective), len(defective), sum(good), len(good))

    def __add__(self, other: Self) -> Self:
        return type(self)(
            self.missed + other.missed,
            self.defective + other.defective,
            self.false_alarms + other.false_alarms,
            self.good + other.good,
        )

    def to_dict(self) -> dict[str, int]:
        """Counts by name."""
        return asdict(self)


def describe_wrong(
    figures: Mapping[str, float], *, confidence: float = CONFIDENCE
) -> dict[str, str]:
    """Defects missed and false alarms with their intervals, as text by title.

    Args:
        figures: of a category, a version or a run, with the counts as `VerdictCounts` names them; where they
            were not recorded the text is "-".
        confidence: of the intervals.
    """
    if not set(COUNT_NAMES) <= figures.keys():
        return {"defects missed": "-", "false alarms": "-"}
    missed, defective, alarms, good = (round(figures[name]) for name in COUNT_NAMES)
    return {
        "defects missed": describe_share(missed, defective, confidence=confidence),
        "false alarms": describe_share(alarms, good, confidence=confidence),
    }


def describe_share(events: int, count: int, *, confidence: float = CONFIDENCE) -> str:
    """Events among a count, with the exact interval of their share: "0 of 9 (0 to 34 %)"."""
    if not count:
        return "none to count"
    low, high = binomial_interval(events, count, confidence=confidence)
    return f"{events} of {count} ({_to_percent(low)} to {_to_percent(high)} %)"


def _to_percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f}" if percent >= 9.95 or percent < 0.05 else f"{percent:.1f}"
