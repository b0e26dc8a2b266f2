"""A day in a few lines: what was served, what people said, and what waits."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import datetime

from onenip.review.answers import Answers, first_id
from onenip.review.items import LINE, WAITING
from onenip.review.queue import ReviewQueue

_MAX_OPINIONS = 10_000


def summarize(queue: ReviewQueue, answers: Answers, *, since: datetime) -> list[str]:
    """A line about each category, and one about the time that it covers.

    Args:
        queue: opinions and what waits.
        answers: what was served.
        since: from when on.
    """
    facts: dict[str, Counter[str]] = defaultdict(Counter)
    for answer in answers.list_after(first_id(since)):
        facts[answer.facts["category"]]["parts"] += 1
        facts[answer.facts["category"]][answer.facts["verdict"]] += 1
    for said in queue.history(limit=_MAX_OPINIONS):
        if said.at >= since and not said.undone_by:
            key = "said on the line" if said.role == LINE else "reviewed"
            facts[queue.find(said.item).category][key] += 1
    for (category, _, state), count in queue.count().items():
        if state in WAITING:
            facts[category]["waiting for review"] += count
    lines = [
        f"{category}: " + ", ".join(f"{count} {what}" for what, count in facts[category].items())
        for category in sorted(facts)
    ]
    return [
        f"Since {since:%Y-%m-%d %H:%M} UTC",
        *(lines or ["nothing was served, said or decided"]),
    ]
