"""Whether enough has arrived, or has waited long enough, to train."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from onenip.ingestion.journal import Journal
from onenip.params import RetrainParams
from onenip.sources.inbox import Inbox


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
    ingested = journal.list_untrained()
    keys = {(item.key, item.version) for item in ingested}
    times: dict[str, tuple[list[datetime], list[datetime]]] = defaultdict(lambda: ([], []))
    for item in ingested:
        times[item.category][1].append(item.arrived_at)
    for arrival in inbox.list_arrivals() if inbox else ():
        if (arrival.key, arrival.version) not in keys:
            times[arrival.category][0].append(arrival.arrived_at)
    return [
        Waiting(category, len(new), len(known), min([*new, *known]))
        for category, (new, known) in sorted(times.items())
    ]


def choose_due(waiting: Sequence[Waiting], params: RetrainParams, *, now: datetime) -> list[str]:
    """Categories with enough new images, or with one that waited too long.

    A clock that was turned back makes images wait longer, never for ever: they still count.
    """
    longest = timedelta(hours=params.max_wait_hours)
    return [
        one.category
        for one in waiting
        if one.count >= params.min_new_images or (one.count and now - one.oldest_at >= longest)
    ]
