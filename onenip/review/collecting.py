"""Doubts from everywhere into the review queue: the line, the inbox, the models, the data.

Each source is read from where it was left; reading it again adds nothing twice. What is left out is logged.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onenip.data.labels import find_category_problem
from onenip.data.manifest import DATA_DIR
from onenip.errors import DataError, ImageError
from onenip.images import load_image
from onenip.ingestion.journal import Item as Arrived
from onenip.review.answers import Answer, Answers, is_doubtful
from onenip.review.items import Candidate, Reason, item_id
from onenip.review.queue import ReviewQueue
from onenip.sources.inbox import NOTE_SUFFIX, Inbox

if TYPE_CHECKING:
    from onenip.detector.detector import Detector

MAX_OPEN = 200  # alarms, and near misses, of a category that wait for a reviewer
_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"BM": ".bmp"}

log = logging.getLogger(__name__)


def collect_waiting(queue: ReviewQueue, answers: Answers, inbox: Inbox | None) -> dict[str, int]:
    """Queue feedback, alarms, near misses and held arrivals, which takes no model; gives how many of each."""
    return {
        "feedback": collect_feedback(queue, answers),
        "alarms and near misses": collect_answers(queue, answers),
        "held arrivals": 0 if inbox is None else collect_held(queue, inbox),
    }


def collect_feedback(queue: ReviewQueue, answers: Answers) -> int:
    """Queue what people on the line said; gives how many opinions."""
    count = 0
    for said in answers.take_feedback():
        try:
            answer = answers.find(said.answer)
            one = _to_candidate(
                answers, answer, "feedback", f"{said.by}: {said.label} {said.kind}".strip()
            )
            if one is None:
                raise DataError("its image is not kept any more")
            queue.tell(
                replace(one, doubt=1.0),
                said.label,
                by=said.by,
                kind=said.kind,
                mask=said.mask_bytes,
                boxes=said.boxes,
                note=said.note,
                at=said.at,
            )
        except DataError as error:
            log.warning("feedback of %s on answer %s is left out: %s", said.by, said.answer, error)
        else:
            count += 1
    return count


def collect_answers(queue: ReviewQueue, answers: Answers) -> int:
    """Queue alarms and near misses that came since the last time; gives how many."""
    waiting = Counter[tuple[str, Reason]]()
    for (category, why, state), number in queue.count().items():
        waiting[category, why] += number * (state == "open")
    count, left = 0, Counter[str]()
    for answer in answers.list_after(queue.read_mark("answers")):
        facts = answer.facts
        if is_doubtful(facts):
            reason: Reason = "alarm" if facts["verdict"] == "anomalous" else "near"
            key = facts["category"], reason
            if waiting[key] >= MAX_OPEN:
                left[f"{facts['category']}, {reason}"] += 1
            elif one := _to_candidate(answers, answer, reason, _describe(facts)):
                queue.add([one])
                waiting[key] += 1
                count += 1
        queue.write_mark("answers", answer.id)
    for name, number in left.items():
        log.warning("%s: %d images are left out: %d wait already", name, number, MAX_OPEN)
    return count


def collect_held(queue: ReviewQueue, inbox: Inbox) -> int:
    """Queue held arrivals, and retire those that are held no longer; gives how many are new."""
    found: set[str] = set()
    count = 0
    for arrival in inbox.list_arrivals(shelf="held"):
        if arrival.key.endswith(NOTE_SUFFIX):
            continue
        found.add(f"held:{arrival.key}")
        note = inbox.read_note("held", arrival.key) or {}
        category = str(note.get("category") or "")
        if find_category_problem(category):
            log.info("%s: not queued, it belongs to no category; see `onenip held`", arrival.key)
            continue
        if queue.has(item_id(category, str(note.get("sha256")))):
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image"
            if not inbox.fetch(arrival, path, shelf="held"):
                continue
            content = path.read_bytes()
        source, detail = f"held:{arrival.key}", str(note.get("reason", ""))
        suffix = Path(arrival.key).suffix.lower()
        one = Candidate(
            category, "held", content, suffix, detail, source, 0.5, at=arrival.arrived_at
        )
        count += queue.add([one])
    for item in queue.list_items(limit=-1):
        if item.source.startswith("held:") and item.source not in found:
            queue.retire(
                item.id, "it is held no longer: it was released, or removed from the shelf"
            )
    return count


def collect_outliers(
    queue: ReviewQueue, category: str, detector: Detector, *, data_dir: Path = DATA_DIR
) -> int:
    """Queue training normals that the champion finds far from all others; gives how many."""
    count = 0
    for name in detector.spec.categories[category].outliers:
        path = data_dir / name
        if path.is_file():
            detail = "a normal training image that looks unlike the others"
            count += queue.add(
                [
                    replace(
                        read_file(path, category, "outlier", detail),
                        source=f"data:{name}",
                        doubt=0.5,
                    )
                ]
            )
    return count


def collect_drift(
    queue: ReviewQueue,
    category: str,
    detail: str,
    arrived: Iterable[Arrived],
    *,
    count: int = 10,
    data_dir: Path = DATA_DIR,
) -> int:
    """Queue the images of a drifting category that look least normal; gives how many.

    Args:
        queue: the queue.
        category: the product category.
        detail: how it drifts.
        arrived: its latest arrivals.
        count: how many images at most.
        data_dir: the data root, where accepted arrivals lie.
    """
    ordered = sorted(arrived, key=lambda one: -(one.score or 0.0))
    there = [one for one in ordered if one.name and (data_dir / one.name).is_file()]
    chosen = [
        replace(
            read_file(data_dir / one.name, category, "drift", detail),
            source=f"data:{one.name}",
            doubt=1 / (1 + at),
        )
        for at, one in enumerate(there[:count])
    ]
    return queue.add(chosen)


def collect_disagreements(
    queue: ReviewQueue,
    answers: Answers,
    category: str,
    *,
    champion: Detector,
    challenger: Detector,
    limit: int = 100,
) -> int:
    """Queue served images of which champion and challenger say different things; gives how many.

    Args:
        queue: the queue.
        answers: what was served.
        category: the product category.
        champion: the approved detector.
        challenger: the one that waits for approval.
        limit: how many of the latest images are looked at; each once per challenger.
    """
    mark = f"disagreements:{category}:{challenger.digest}"
    last, count = queue.read_mark(mark), 0
    latest = answers.list_latest(category=category, limit=limit)
    for answer in reversed([one for one in latest if one.id > last]):
        one = _to_candidate(answers, answer, "disagreement", "")
        if one is not None:
            try:
                sides = [
                    model.predict(
                        [load_image(one.content, sample_range=model.sample_range(category))],
                        category=category,
                    )[0]
                    for model in (champion, challenger)
                ]
            except ImageError as error:
                log.warning("answer %s is not compared: %s", answer.id, error.reason)
                continue
            if sides[0].is_anomalous != sides[1].is_anomalous:
                detail = "; ".join(
                    f"{name}: {said.verdict}, score {said.score:.3g} (threshold {said.threshold:.3g})"
                    for name, said in zip(("champion", "challenger"), sides, strict=True)
                )
                count += queue.add([replace(one, detail=detail)])
        queue.write_mark(mark, answer.id)
    return count


def read_file(path: Path, category: str, reason: Reason, detail: str) -> Candidate:
    """An image file as a candidate."""
    return Candidate(
        category, reason, path.read_bytes(), path.suffix.lower(), detail, f"file:{path}"
    )


def _to_candidate(
    answers: Answers, answer: Answer, reason: Reason, detail: str
) -> Candidate | None:
    """A kept answer as a candidate; None if its image is gone."""
    content = answers.read_image(answer.id)
    if content is None:
        return None
    try:
        found = answers.read_map(answer.id)
    except DataError as error:
        log.warning("answer %s comes without its map: %s", answer.id, error)
        found = None
    score, threshold = answer.facts["score"], answer.facts["threshold"]
    return Candidate(
        category=answer.facts["category"],
        reason=reason,
        content=content,
        suffix=next((s for start, s in _SUFFIXES.items() if content.startswith(start)), ".tif"),
        detail=detail,
        source=f"served:{answer.id}",
        doubt=max(0.0, 1.0 - abs(score - threshold) / threshold) if threshold > 0 else 0.0,
        answer=answer.facts,
        score_map=found[0] if found else None,
        pixel_threshold=found[1] if found else 0.0,
        at=answer.at,
    )


def _describe(facts: Mapping[str, Any]) -> str:
    return f"served as {facts['verdict']}: score {facts['score']:.3g}, threshold {facts['threshold']:.3g}"
