"""The champion's side of a report: its figures on the same images, and what changed from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from onenip.evaluation.comparison import MEAN, ChangedVerdict, Difference, compare
from onenip.evaluation.metrics import Undefined
from onenip.evaluation.results import Evaluation

_LOWER_IS_BETTER = frozenset({"false_alarm_rate"})
_DRAWS = 1000
_SHOWN_CHANGES = 12


@dataclass(frozen=True)
class FigureChange:
    """Change of a figure from champion to challenger, in percent, as text.

    Attributes:
        before: the champion's figure, such as "was 85.0".
        moved: challenger minus champion.
        interval: of that difference; empty where it is not defined, or nothing moved in any resample.
        direction: "better" or "worse"; "same" where the interval holds 0.
    """

    before: str
    moved: str
    interval: str
    direction: str


@dataclass(frozen=True)
class VerdictChanges:
    """Verdicts of a category that are others than the champion's.

    Attributes:
        better: number of images that are judged rightly now.
        worse: number of images that the champion judged rightly.
        shown: the first of them, worse ones first.
    """

    better: int
    worse: int
    shown: tuple[ChangedVerdict, ...]


class ChampionSide:
    """The champion's side of a report.

    Attributes:
        champions: what served each category, in words; empty where the evaluation does not say.
        common: number of images that both have scored.
    """

    def __init__(self, champion: Evaluation, challenger: Evaluation, *, confidence: float) -> None:
        found = compare(champion, challenger, confidence=confidence, draws=_DRAWS)
        self._differences = dict(found.differences)
        if set(champion.metrics["categories"]) != set(challenger.metrics["categories"]):
            del self._differences[MEAN]  # means over other categories say nothing
        self._changed = found.changed
        self.champions: dict[str, str] = dict(champion.metrics.get("champions", {}))
        self.common = found.common

    @classmethod
    def load(cls, champion: Sequence[Path], challenger: Path, *, confidence: float) -> Self:
        """Both read from their folders, the champion's perhaps from one for each category.

        Raises:
            DataError: if either is not what `onenip evaluate` writes, or they share no test image.
        """
        sides = Evaluation.load(*champion), Evaluation.load(challenger)
        return cls(*sides, confidence=confidence)

    def find_figure_change(self, category: str, name: str) -> FigureChange | None:
        """Of a category's figure, or of the mean's; None where one of them is not defined."""
        found = self._differences.get(category, {}).get(name)
        if found is None or isinstance(found.difference, Undefined):
            return None
        moved = round(100 * found.difference, 1) + 0.0  # never -0.0
        better = moved < 0 if name in _LOWER_IS_BETTER else moved > 0
        certain = "better" if better else "worse"
        assert not isinstance(found.champion, Undefined)
        return FigureChange(
            before=f"was {100 * found.champion:.1f}",
            moved=f"{moved:+.1f}",
            interval=_format_ends(found),
            direction=certain if found.is_certain and moved else "same",
        )

    def find_verdict_changes(self, category: str) -> VerdictChanges | None:
        """Verdicts of a category that changed, those for the worse first; None without a champion."""
        if category not in self._differences:
            return None
        own = [item for item in self._changed if item.after.category == category]
        worse = [item for item in own if not item.is_better]
        better = [item for item in own if item.is_better]
        shown: Sequence[ChangedVerdict] = [*worse, *better][:_SHOWN_CHANGES]
        return VerdictChanges(len(better), len(worse), tuple(shown))


def _format_ends(found: Difference) -> str:
    if isinstance(found.low, Undefined) or isinstance(found.high, Undefined):
        return ""
    if found.low == found.high == 0:
        return ""
    return f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
