"""From the inbox into the data set, exactly once, wherever a kill lands.

Each arrival goes through the states of the journal. An object leaves the inbox only after its image
is in DVC's remote and its version committed, or after it lies on a shelf with a note. Every step
may be repeated: files are named by content, and a step that was done is found done.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from onenip.data import dvc
from onenip.data.checkout import hold_checkout
from onenip.data.git import HERE
from onenip.data.labels import GOOD, find_category_problem
from onenip.data.manifest import DATA_DIR, read_ranges
from onenip.data.outputs import Outputs
from onenip.errors import (
    ArrivalError,
    CheckpointError,
    DataError,
    ImageError,
    OneNIPError,
    RegistryError,
    UnreachableError,
)
from onenip.images import SampleExtent, SampleRange, decide_range, hash_file, measure_samples
from onenip.ingestion.arrival_check import NEAR, Verdict, inspect, placed_name, shelf_name
from onenip.ingestion.branch import DataBranch
from onenip.ingestion.fingerprint import KnownImages
from onenip.ingestion.journal import Item, Journal
from onenip.params import Params
from onenip.sources.inbox import SHELVES, Arrival, Inbox

if TYPE_CHECKING:
    from onenip.detector.detector import Detector


_BATCH = 2000  # arrivals that are versioned together: a kill, or a full disk, costs no more
_MAX_LISTED = 500
_MAX_MEASURED = 32  # images that say what the range of a new category is
_MAX_BYTES = 2 << 30  # of an arrival

log = logging.getLogger(__name__)

FindChampion = Callable[[str], "Detector | None"]


@dataclass(frozen=True)
class IngestResult:
    """What one ingestion did.

    Attributes:
        counts: by category, then by outcome, `gone` for those that were replaced meanwhile, `left` for
            those that could not be read; `near-duplicates` are those of the accepted that nearly equal
            an image of the data.
        set_aside: the first arrivals that were not accepted, with their reasons; `counts` has all.
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
    find_unified: Callable[[], Detector | None] = lambda: None,
    root: Path = HERE,
) -> IngestResult:
    """Take in everything that waits in the inbox; also completes what an earlier run left.

    Args:
        params: what is held.
        inbox: where images arrive.
        find_champion: gives the detector that serves a category, or None.
        find_unified: gives the detector that serves most categories, or None.
        root: the checkout.

    Raises:
        BusyError: if another command is at work in this checkout.
        SourceError: if the inbox cannot be reached, or the disk is full.
        DataError: if the branch of arrivals and this checkout went different ways, data are missing
            here, or the journal cannot be written.
        VersioningError: if DVC or Git refuses.
    """
    work_dir = Outputs(root).ingestion
    with (
        _disk_refusals(work_dir),
        hold_checkout("ingest", root=root),
        _open_journal(work_dir) as journal,
    ):
        steps = _Steps(params, inbox, find_champion, cache(find_unified), root, journal)
        steps.branch.require_current(has_placed=bool(journal.list_items(state="placed", limit=1)))
        steps.data_dir.mkdir(exist_ok=True)  # a new workspace has none
        steps.note(inbox.list_arrivals())
        steps.place_judged()
        tally = _Tally()
        last, commit = 0, None
        while True:
            page = journal.list_items(state="arrived", after=last, limit=_BATCH)
            steps.judge(page, tally)
            commit = steps.commit_placed() or commit
            steps.clear_inbox(tally)
            if len(page) < _BATCH:
                break
            last = page[-1].id
        return tally.finish(commit, dvc.read_data_version(root))


@contextmanager
def open_journal(root: Path = HERE) -> Iterator[Journal]:
    """The journal of a checkout.

    Raises:
        DataError: if it cannot be read or written.
    """
    with _open_journal(Outputs(root).ingestion) as journal:
        yield journal


@dataclass(frozen=True)
class _Steps:
    params: Params
    inbox: Inbox
    find_champion: FindChampion
    find_unified: Callable[[], Detector | None]
    root: Path
    journal: Journal
    first_extents: dict[str, list[SampleExtent]] = field(default_factory=dict)

    @property
    def data_dir(self) -> Path:
        return self.root / DATA_DIR

    @property
    def branch(self) -> DataBranch:
        return DataBranch(self.params.retrain, self.root)

    def note(self, arrivals: Iterator[Arrival]) -> None:
        """Write all arrivals into the journal, many at a time."""
        now = datetime.now(tz=UTC)
        while chunk := list(islice(arrivals, _BATCH)):
            with self.journal.transaction():
                for arrival in chunk:
                    self.journal.add(
                        key=arrival.key,
                        version=arrival.version,
                        size=arrival.size,
                        arrived_at=min(arrival.arrived_at, now),  # a camera's clock may be wrong
                        category=arrival.category,
                    )

    def place_judged(self) -> None:
        """Complete what was judged before a kill."""
        for item in self.journal.list_items(state="judged", outcome="accepted"):
            self._place(item)

    def judge(self, items: Sequence[Item], tally: _Tally) -> None:
        """Fetch, judge and place new images, one at a time; one that cannot be read stays where it is."""
        refused: dict[str, str] = {}  # categories whose champion cannot be asked now
        for item in items:
            try:
                if item.category in refused:
                    raise ArrivalError(refused[item.category])
                if item.size > _MAX_BYTES:  # copied, it might fill the disk at every run
                    raise ArrivalError(f"it has {item.size / 1e9:.1f} GB, which no image has")
                if not self._judge(item, self.known):
                    tally.add(item, "gone")
            except (RegistryError, CheckpointError) as error:
                if isinstance(error, UnreachableError):
                    raise
                refused[item.category] = f"no champion of {item.category} can be asked: {error}"
                self._leave(item, refused[item.category], tally)
            except ArrivalError as error:
                self._leave(item, str(error), tally)

    @cached_property
    def known(self) -> KnownImages:
        """Images that are in the data."""
        return KnownImages(self.data_dir, self.journal, self.find_range)

    def find_range(self, category: str) -> SampleRange | None:
        """Range of a category's samples: declared, decided by validation, or as its first images suggest."""
        if self._is_range_known(category):
            declared = self.params.data.declared_range(category)
            return declared or self.decided_ranges[category]
        return decide_range(self._measure_first(category))

    def _is_range_known(self, category: str) -> bool:
        declared = self.params.data.declared_range(category)
        return declared is not None or category in self.decided_ranges

    def _measure_first(self, category: str) -> list[SampleExtent]:
        """Extents of the first normal images of a category that was never validated, to be added to."""
        if category not in self.first_extents:
            paths = sorted((self.data_dir / category / "train" / GOOD).glob("*"))[:_MAX_MEASURED]
            self.first_extents[category] = list(filter(None, map(_measure, paths)))
        return self.first_extents[category]

    def _suggest_range(self, category: str, staged: Path) -> SampleRange | None:
        """As `find_range`, with an arrival among the first images."""
        if self._is_range_known(category):
            return self.find_range(category)
        extents, before = self._measure_first(category), self.find_range(category)
        extents += filter(None, [_measure(staged)])
        found = decide_range(extents)
        if found is not None and found != before:
            log.warning(
                "%s: samples are read over %g to %g, as its first images suggest, until `onenip "
                "validate` decides; if that is wrong, declare data.sample_ranges.%s",
                *(category, *found, category),
            )
        return found

    @cached_property
    def decided_ranges(self) -> dict[str, SampleRange | None]:
        """Ranges that the latest validation decided on."""
        return read_ranges(Outputs(self.root).manifest)

    def commit_placed(self) -> str | None:
        """Version, push and commit what was placed, all at once."""
        items = self.journal.list_items(state="placed")
        if not items:
            return None
        counts = Counter(item.category for item in items)
        summary = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        commit = self.branch.commit(f"Add arrived normal images: {summary}")
        with self.journal.transaction():
            for item in items:
                self.journal.update(item, {"state": "committed"})
        return commit

    def clear_inbox(self, tally: _Tally) -> None:
        """Remove what is committed, move the rest to its shelf."""
        for item in self.journal.list_items(state="committed"):
            try:
                self.inbox.remove(_to_arrival(item))
            except ArrivalError as error:
                log.warning("%s: taken, but it stays in the inbox: %s", item.key, error)
                continue
            self.journal.update(item, {"state": "done"})
            tally.add(item, "accepted")
        for item in self.journal.list_items(state="judged"):
            try:
                self._set_aside(item)
            except ArrivalError as error:
                self._leave(item, str(error), tally)
            else:
                tally.add(item, item.outcome)

    def _judge(self, item: Item, known: KnownImages) -> bool:
        """Decide about one arrival; whether it was still there."""
        staged = self._staged(item)
        staged.parent.mkdir(parents=True, exist_ok=True)
        if not self.inbox.fetch(_to_arrival(item), staged):
            reason = "it was gone, or replaced, before it was read"
            self.journal.update(item, {"state": "done", "reason": reason})
            staged.unlink(missing_ok=True)
            return False
        _write_through(staged)
        found = self._inspect(staged, item, known, is_released=False)
        if (
            found.outcome != "accepted"
            and found.fingerprint
            and self.inbox.is_released(found.sha256)
        ):
            found = self._inspect(staged, item, known, is_released=True)
        outcome, reason = found.outcome, found.reason
        name = placed_name(item, found.sha256)
        is_placed = known.find_file(found.sha256) == name
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
        return True

    def _leave(self, item: Item, reason: str, tally: _Tally) -> None:
        """Leave an arrival in the inbox until the next run."""
        log.warning("%s: left in the inbox: %s", item.key, reason)
        tally.add(item, "left")

    def _inspect(
        self, staged: Path, item: Item, known: KnownImages, *, is_released: bool
    ) -> Verdict:
        champion = self.find_champion(item.category)
        categories = sorted(path.name for path in self.data_dir.iterdir() if path.is_dir())
        sample_range = None
        if champion is not None and item.category in champion.categories:
            sample_range = champion.sample_range(item.category)
            if sample_range is None and self._is_range_known(item.category):
                sample_range = self.find_range(item.category)
        elif not find_category_problem(item.category):
            sample_range = self._suggest_range(item.category, staged)
        try:
            return inspect(
                staged,
                item,
                known=known,
                champion=champion,
                unified=self.find_unified,
                categories=categories,
                is_released=is_released,
                params=self.params.retrain,
                sample_range=sample_range,
            )
        except (OneNIPError, OSError):
            raise
        except Exception as error:  # whatever an image does to a decoder or a model, others go on
            log.exception("%s: it cannot be judged", item.key)
            reason = f"it cannot be judged ({type(error).__name__}: {error})"
            return Verdict("quarantine", reason, hash_file(staged))

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
        return Outputs(self.root).ingestion / "staging" / str(item.id)


@contextmanager
def _disk_refusals(work_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path = error.filename or work_dir
        raise DataError(f"{path}: {error.strerror or error}", path=path) from error


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


def _measure(path: Path) -> SampleExtent | None:
    try:
        return measure_samples(path)
    except ImageError:  # who inspects it says why
        return None


def _write_through(path: Path) -> None:
    """Make sure that a file survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Tally:
    """Counts of what became of the arrivals, and the first that were set aside."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._set_aside: list[Item] = []

    def add(self, item: Item, outcome: str) -> None:
        self._counts[item.category, outcome] += 1
        if outcome == "accepted" and item.reason.startswith(NEAR):
            self._counts[item.category, "near-duplicates"] += 1
        if outcome in SHELVES and len(self._set_aside) < _MAX_LISTED:
            self._set_aside.append(item)

    def finish(self, commit: str | None, data_version: str | None) -> IngestResult:
        counts: dict[str, dict[str, int]] = defaultdict(dict)
        for (category, outcome), count in sorted(self._counts.items()):
            counts[category][outcome] = count
        return IngestResult(dict(counts), tuple(self._set_aside), commit, data_version)
