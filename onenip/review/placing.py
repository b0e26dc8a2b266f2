"""Where decided labels go: normals into training through ingestion, defects into the test set.

A share of the defects goes beside the training images, where `train.real_defects` says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from onenip.data.checkout import hold_checkout
from onenip.data.git import HERE
from onenip.data.manifest import DATA_DIR
from onenip.data.outputs import Outputs
from onenip.errors import OneNIPError, SourceError
from onenip.ingestion.arrival_check import name_by_content
from onenip.ingestion.ingest import ingest
from onenip.ingestion.reviewed import Defect, place_defects
from onenip.params import Params
from onenip.review.items import DEFECT, Item
from onenip.review.queue import ReviewQueue
from onenip.sources.inbox import FolderInbox, Inbox

if TYPE_CHECKING:
    from onenip.detector.detector import Detector

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Applied:
    """What became of decided labels.

    Attributes:
        items: those that were dealt with, as they are now; `problem` says what could not be done.
        commit: Git commit of the changed test set, None if it did not change.
        in_inbox: how many normals the next `onenip ingest` takes in.
    """

    items: tuple[Item, ...]
    commit: str | None
    in_inbox: int


def apply_labels(
    queue: ReviewQueue,
    params: Params,
    *,
    inbox: Inbox | None,
    find_champion: Callable[[str], Detector | None] = lambda _: None,
    root: Path = HERE,
) -> Applied:
    """Bring the data to what was decided, and take out of them what was decided otherwise since.

    Defects, with kind and mask, join the test set, or training as `train.real_defects` says, dated by
    today; normals are delivered to the inbox, as looked at. Without an inbox they are taken in at once.
    Doing it again after a kill gives the same.

    Args:
        queue: holds the decisions.
        params: branch of the data, and what ingestion checks.
        inbox: where images arrive; None if `retrain.inbox` names none.
        find_champion: for ingestion, where there is no inbox.
        root: the checkout.

    Raises:
        BusyError: if another command is at work in this checkout.
        DataError, VersioningError, SourceError: as for ingestion.
    """
    with hold_checkout("review", root=root):
        items = queue.list_unplaced()
        commit = _apply_defects(queue, params, items, inbox, root)
        normals = [one for one in items if one.state == "decided" and one.label == "good"]
        own_dir = Outputs(root).ingestion / "reviewed"
        own = FolderInbox(own_dir)
        delivered = [one for one in normals if _deliver(queue, one, inbox or own, root)]
        if inbox is None and any(own_dir.rglob("*.*")):
            result = ingest(params, inbox=own, find_champion=find_champion, root=root)
            for one in result.set_aside:
                queue.mark_placed(queue.find(Path(one.key).stem), place="", problem=one.reason)
    return Applied(
        items=tuple(queue.find(one.id) for one in items),
        commit=commit,
        in_inbox=len(delivered) if inbox is not None else 0,
    )


def _apply_defects(
    queue: ReviewQueue, params: Params, items: Sequence[Item], inbox: Inbox | None, root: Path
) -> str | None:
    """Change the test set, and take out what is no longer decided; gives the commit."""
    defects = [one for one in items if one.state == "decided" and one.label == DEFECT]
    stale = [one for one in items if one.placed and one not in defects]
    placings, commit = place_defects(
        params.retrain,
        [Defect(one.id, one.category, one.kind, one.image, one.mask) for one in defects],
        training_share=params.train.real_defects,
        withdrawn=[one.place for one in stale if one.place],
        by=[said.by for one in items for said in queue.history(item=one.id)],
        today=datetime.now(tz=UTC).date(),
        root=root,
    )
    for one in items:
        problem = _take_from_inbox(one, inbox) if one.placed.startswith("good/") else ""
        if one in stale:
            queue.mark_placed(one, place="", is_placed=False, problem=problem)
        elif one in defects:
            _settle_held(queue, one, inbox)
            found = placings[one.id]
            queue.mark_placed(one, place=found.place, problem=found.remark or problem)
    return commit


def _settle_held(queue: ReviewQueue, one: Item, inbox: Inbox | None) -> None:
    """Move a defect that is held to the shelf of defects."""
    name = _held_name(one)
    if inbox is None or not name:
        return
    try:
        inbox.confirm_defect(name, note=_note(queue, one))
    except SourceError as error:
        log.info("%s: %s", one.source, error)  # it was dealt with in another way


def _deliver(queue: ReviewQueue, one: Item, inbox: Inbox, root: Path) -> bool:
    """Bring a confirmed normal to the inbox; whether it is to be taken in there."""
    place = name_by_content(one.category, one.sha256, one.image.suffix)
    if one.source.startswith("data:"):  # it is in the data, and stays there
        queue.mark_placed(one, place="")
        return False
    try:
        name = _held_name(one)
        if name and inbox.read_note("held", name) is not None:
            inbox.release(name, note=_note(queue, one))
        elif not (root / DATA_DIR / place).is_file():
            key = f"{one.category}/{one.id}{one.image.suffix}"
            inbox.deliver(one.image, key, note=_note(queue, one))
    except OneNIPError as error:
        log.warning("%s: not delivered: %s", one.id, error)
        queue.mark_placed(one, place="", is_placed=False, problem=str(error))
        return False
    queue.mark_placed(one, place=place)
    return True


def _take_from_inbox(one: Item, inbox: Inbox | None) -> str:
    """Remove from the inbox what was delivered and not taken in yet; the problem, if there may be one."""
    if inbox is None:
        return ""
    if _held_name(one):
        return "it was released before; if it is still in the inbox, remove it there"
    key = f"{one.category}/{one.id}{one.image.suffix}"
    for arrival in inbox.list_arrivals():
        if arrival.key == key:
            inbox.remove(arrival)
    return ""


def _held_name(one: Item) -> str:
    kind, _, name = one.source.partition(":")
    return name if kind == "held" else ""


def _note(queue: ReviewQueue, one: Item) -> dict[str, str]:
    """Who decided and why, for the note beside an image."""
    said = [o for o in queue.history(item=one.id) if o.label == one.label and not o.undone_by]
    return {
        "sha256": one.sha256,
        "by": ", ".join(o.by for o in said),
        "reason": "; ".join(o.note for o in said if o.note) or f"reviewed as {one.label}",
        "at": said[0].at.isoformat() if said else "",
        "held_for": one.detail,
    }
