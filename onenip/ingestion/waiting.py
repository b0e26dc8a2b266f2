"""Whether enough has arrived, or has waited long enough, to train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from onenip.ingestion.journal import Journal
from onenip.params import RetrainParams
from onenip.sources.inbox import Inbox

_CLOCK_SKEW = timedelta(hours=1)  # by which clocks of different machines may differ


@dataclass(frozen=True)
class Waiting:
    """New images of one category that no model was trained with yet.

    Attributes:
        category: the product category, or "" for images in no folder.
        in_inbox: not looked at yet.
        in_data: ingested.
        oldest_at: when the oldest of them arrived, UTC.
    """

    category: str
    in_inbox: int
    in_data: int
    oldest_at: datetime

    @property
    def count(self) -> int:
        """All of them."""
        return self.in_inbox + self.in_data


def count_waiting(inbox: Inbox | None, journal: Journal) -> list[Waiting]:
    """New images by category, sorted; `inbox` None counts only ingested ones.

    Raises:
        SourceError: if the inbox cannot be reached.
    """
    found = {
        name: Waiting(name, 0, count, oldest)
        for name, (count, oldest) in journal.count_untrained().items()
    }
    ingested = journal.list_unremoved() if inbox else set()
    for arrival in inbox.list_arrivals() if inbox else ():
        if (arrival.key, arrival.version) in ingested:
            continue
        name = arrival.category
        one = found.get(name) or Waiting(name, 0, 0, arrival.arrived_at)
        oldest = min(one.oldest_at, arrival.arrived_at)
        found[name] = replace(one, in_inbox=one.in_inbox + 1, oldest_at=oldest)
    return [found[name] for name in sorted(found)]


def choose_due(waiting: Sequence[Waiting], params: RetrainParams, *, now: datetime) -> list[str]:
    """Categories with enough new images, or with one that waited too long.

    A time that lies far in the future is of no use, because some clock is or was wrong: such images
    count as having waited, for they might otherwise wait for ever.
    """
    longest = timedelta(hours=params.max_wait_hours)
    return [
        one.category
        for one in waiting
        if one.count >= params.min_new_images
        or (one.count and not -_CLOCK_SKEW <= now - one.oldest_at < longest)
    ]


def list_new_categories(waiting: Sequence[Waiting], data_dir: Path) -> list[str]:
    """Categories that have images in the inbox and none in the data: their first ones are taken at once."""
    return [
        one.category
        for one in waiting
        if one.in_inbox and one.category and not (data_dir / one.category).is_dir()
    ]
