"""From the inbox into the data set, exactly once, wherever a kill lands.

Each arrival goes through the states of the journal. An object leaves the inbox only after its image
is in DVC's remote and its version committed, or after it lies on a shelf with a note. Every step
may be repeated: files are named by content, and a step that was done is found done.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from onenip import versioning
from onenip.errors import BusyError, DataError
from onenip.ingestion.fingerprint import KnownImages
from onenip.ingestion.inspection import Verdict, inspect, placed_name, shelf_name
from onenip.ingestion.journal import Item, Journal
from onenip.params import Params
from onenip.sources.inbox import SHELVES, Arrival, Inbox

if TYPE_CHECKING:
    from onenip.detector import Detector

WORK_DIR = Path("artifacts/ingestion")

_PAGE = 200

log = logging.getLogger(__name__)

FindChampion = Callable[[str], "Detector | None"]


@dataclass(frozen=True)
class IngestResult:
    """What one ingestion did.

    Attributes:
        counts: by category, then by outcome.
        set_aside: arrivals that were not accepted, with their reasons.
        commit: Git commit that names the new data, None if nothing new was accepted.
        data_version: what `data.dvc` names now.
    """

    counts: dict[str, dict[str, int]]
    set_aside: tuple[Item, ...]
    commit: str | None
    data_version: str | None


def ingest(
    params: Params,
    *,
    inbox: Inbox,
    find_champion: FindChampion,
    root: Path = versioning.HERE,
) -> IngestResult:
    """Take in everything that waits in the inbox; also completes what an earlier run left.

    Args:
        params: where the data lie, and what is held.
        inbox: where images arrive.
        find_champion: gives the detector that serves a category, or None.
        root: the checkout.

    Raises:
        BusyError: if another ingestion is at work in this checkout.
        SourceError: if the inbox cannot be reached, or the disk is full.
        DataError: if the branch of arrivals and this checkout went different ways, data are missing
            here, or the journal cannot be written.
        VersioningError: if DVC or Git refuses.
    """
    work_dir = root / WORK_DIR
    with _only_one(work_dir), _open_journal(work_dir) as journal:
        steps = _Steps(params, inbox, find_champion, root, journal)
        steps.require_same_line()
        steps.require_whole_data()
        for arrival in inbox.list_arrivals():
            steps.note(arrival)
        steps.place_judged()
        touched = steps.judge_arrived()
        commit = steps.commit_placed()
        touched |= steps.clear_inbox()
        items = [item for item in journal.list_items() if item.id in touched]
        return _summarise(items, commit, root, params)


@contextmanager
def open_journal(root: Path = versioning.HERE) -> Iterator[Journal]:
    """The journal of a checkout.

    Raises:
        DataError: if it cannot be read or written.
    """
    with _open_journal(root / WORK_DIR) as journal:
        yield journal


@dataclass(frozen=True)
class _Steps:
    params: Params
    inbox: Inbox
    find_champion: FindChampion
    root: Path
    journal: Journal

    @property
    def data_dir(self) -> Path:
        return self.root / self.params.data.root

    @property
    def pointer(self) -> Path:
        return Path(f"{self.params.data.root}.dvc")

    def require_same_line(self) -> None:
        """Refuse to build on data that lack what the branch of arrivals has."""
        branch = self.params.retrain.branch
        tip = versioning.find_commit(branch, root=self.root)
        if tip is None or versioning.is_ancestor(tip, root=self.root):
            return
        if self.journal.list_items(state="placed"):
            return  # killed between placing and committing
        theirs = versioning.read_version_at(tip, root=self.root, pointer=self.pointer)
        if theirs != versioning.read_data_version(self.root, pointer=self.pointer):
            raise DataError(
                f"{self.pointer} is not that of the branch {branch}, which has newer arrivals; "
                f"merge it, or `git checkout {branch} -- {self.pointer} && dvc checkout`",
                path=self.pointer,
            )

    def require_whole_data(self) -> None:
        """Refuse to version data of which a part is not laid out here: it would count as deleted."""
        named = versioning.count_files(self.root, pointer=self.pointer)
        present = sum(path.is_file() for path in self.data_dir.rglob("*"))
        if present < named:
            raise DataError(
                f"{self.data_dir}: {named - present} of {named} files that {self.pointer} names are "
                "missing here; run `dvc pull`",
                path=self.data_dir,
            )

    def note(self, arrival: Arrival) -> None:
        self.journal.add(
            key=arrival.key,
            version=arrival.version,
            size=arrival.size,
            arrived_at=arrival.arrived_at,
            category=arrival.category,
        )

    def place_judged(self) -> None:
        """Complete what was judged before a kill."""
        for item in self.journal.list_items(state="judged", outcome="accepted"):
            self._place(item)

    def judge_arrived(self) -> set[int]:
        """Fetch, judge and place everything new, one image at a time; which items were."""
        touched: set[int] = set()
        known: KnownImages | None = None
        last = 0
        while page := self.journal.list_items(state="arrived", after=last, limit=_PAGE):
            known = known or KnownImages(self.data_dir, self.journal)
            for item in page:
                self._judge(item, known)
                touched.add(item.id)
            last = page[-1].id
        return touched

    def commit_placed(self) -> str | None:
        """Version, push and commit what was placed, all at once."""
        items = self.journal.list_items(state="placed")
        if not items:
            return None
        versioning.add([self.params.data.root], root=self.root)
        if versioning.has_remote(root=self.root):
            versioning.push([str(self.pointer)], root=self.root)
        counts = Counter(item.category for item in items)
        summary = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        commit = versioning.commit(
            [self.pointer],
            message=f"Add arrived normal images: {summary}",
            branch=self.params.retrain.branch,
            root=self.root,
        )
        with self.journal.transaction():
            for item in items:
                self.journal.update(item, {"state": "committed"})
        log.info("%s: %s", self.params.retrain.branch, summary)
        return commit

    def clear_inbox(self) -> set[int]:
        """Remove what is committed, move the rest to its shelf; which items were."""
        done = set()
        for item in self.journal.list_items(state="committed"):
            self.inbox.remove(_to_arrival(item))
            self.journal.update(item, {"state": "done"})
            done.add(item.id)
        for item in self.journal.list_items(state="judged"):
            self._set_aside(item)
            done.add(item.id)
        return done

    def _judge(self, item: Item, known: KnownImages) -> None:
        staged = self._staged(item)
        staged.parent.mkdir(parents=True, exist_ok=True)
        if not self.inbox.fetch(_to_arrival(item), staged):
            reason = "it was gone, or replaced, before it was read"
            self.journal.update(item, {"state": "done", "reason": reason})
            staged.unlink(missing_ok=True)
            return
        _write_through(staged)
        found = self._inspect(staged, item, known, is_released=False)
        if found.reason and found.fingerprint and self.inbox.is_released(found.sha256):
            found = self._inspect(staged, item, known, is_released=True)
        outcome, reason = found.outcome, found.reason
        name = placed_name(item, found.sha256)
        is_placed = known.find_same(found.sha256) == name
        if is_placed and not self.journal.is_placed(found.sha256):  # the journal was lost
            outcome, reason = "accepted", ""
        if outcome != "accepted":
            name = shelf_name(item, found.sha256)
        self.journal.update(
            item,
            {
                "state": "judged",
                "outcome": outcome,
                "reason": reason,
                "sha256": found.sha256,
                "name": name,
                "digest": found.digest,
                "score": found.score,
                "threshold": found.threshold,
                "distance": found.distance,
            },
        )
        if outcome == "accepted":
            self._place(item, name=name)
            assert found.fingerprint is not None
            known.add(name, found.fingerprint)
        else:
            staged.unlink(missing_ok=True)

    def _inspect(
        self, staged: Path, item: Item, known: KnownImages, *, is_released: bool
    ) -> Verdict:
        return inspect(
            staged,
            item,
            known=known,
            champion=self.find_champion(item.category),
            is_known_category=(self.data_dir / item.category).is_dir(),
            is_released=is_released,
            params=self.params.retrain,
        )

    def _place(self, item: Item, *, name: str = "") -> None:
        """Move a staged image into the data; a kill leaves it here or there."""
        target = self.data_dir / (name or item.name)
        staged = self._staged(item)
        if staged.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(staged, target)
        elif not target.is_file():  # somebody cleaned up: fetch it again
            self.journal.update(item, {"state": "arrived", "outcome": "", "name": ""})
            return
        self.journal.update(item, {"state": "placed"})

    def _set_aside(self, item: Item) -> None:
        assert item.outcome in SHELVES
        note = {
            "key": item.key,
            "category": item.category,
            "sha256": item.sha256,
            "reason": item.reason,
            "arrived_at": item.arrived_at.isoformat(),
            "judged_at": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        }
        self.inbox.set_aside(_to_arrival(item), shelf=item.outcome, name=item.name, note=note)
        self.journal.update(item, {"state": "done"})
        log.warning("%s: %s: %s", item.key, item.outcome, item.reason)

    def _staged(self, item: Item) -> Path:
        return self.root / WORK_DIR / "staging" / str(item.id)


@contextmanager
def _only_one(work_dir: Path) -> Iterator[None]:
    work_dir.mkdir(parents=True, exist_ok=True)
    with (work_dir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"{work_dir}: another ingestion is at work in this checkout") from error
        yield


@contextmanager
def _open_journal(work_dir: Path) -> Iterator[Journal]:
    path = work_dir / "journal.sqlite"
    try:
        with Journal(path) as journal:
            yield journal
    except sqlite3.Error as error:
        raise DataError(f"{path}: {error}", path=path) from error


def _to_arrival(item: Item) -> Arrival:
    return Arrival(item.key, item.version, item.size, item.arrived_at)


def _write_through(path: Path) -> None:
    """Make sure that a file survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _summarise(items: list[Item], commit: str | None, root: Path, params: Params) -> IngestResult:
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for (category, outcome), count in sorted(
        Counter((item.category, item.outcome or "gone") for item in items).items()
    ):
        counts[category][outcome] = count
    return IngestResult(
        counts=dict(counts),
        set_aside=tuple(item for item in items if item.outcome in SHELVES),
        commit=commit,
        data_version=versioning.read_data_version(root, pointer=Path(f"{params.data.root}.dvc")),
    )
