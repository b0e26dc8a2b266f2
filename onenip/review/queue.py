"""The review queue: images that a person should look at, and every opinion about them.

One SQLite file with folders of images, maps and masks beside it, so that pages, commands and flows may use
it at once. An image is one item, whatever brought it here; opinions are kept for good, those that were taken
back too. Knows nothing of models, inboxes and data sets.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onenip.data.outputs import OUTPUTS
from onenip.errors import DataError
from onenip.folders import write_whole
from onenip.images import read_size
from onenip.review.items import (
    DEFECT,
    LINE,
    REASONS,
    REVIEWER,
    WAITING,
    Candidate,
    Item,
    Label,
    Opinion,
    Reason,
    State,
    check_opinion,
    check_person,
    item_id,
)
from onenip.review.marks import draw_marks, save_map

_SCHEMA = """
CREATE TABLE IF NOT EXISTS item (
    id TEXT PRIMARY KEY,
    category TEXT NOT NULL,
    reason TEXT NOT NULL,
    rank INTEGER NOT NULL,
    doubt REAL NOT NULL,
    detail TEXT NOT NULL,
    source TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    image TEXT NOT NULL,
    map TEXT NOT NULL,
    answer TEXT NOT NULL,
    at TEXT NOT NULL,
    added_at TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'open',
    label TEXT NOT NULL DEFAULT '',
    kind TEXT NOT NULL DEFAULT '',
    mask TEXT NOT NULL DEFAULT '',
    place TEXT NOT NULL DEFAULT '',
    placed TEXT NOT NULL DEFAULT '',
    problem TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS item_order ON item (state, category, rank, doubt DESC);
CREATE TABLE IF NOT EXISTS opinion (
    id INTEGER PRIMARY KEY,
    item TEXT NOT NULL,
    role TEXT NOT NULL,
    label TEXT NOT NULL,
    kind TEXT NOT NULL,
    mask TEXT NOT NULL,
    boxes TEXT NOT NULL,
    by TEXT NOT NULL,
    at TEXT NOT NULL,
    note TEXT NOT NULL,
    undone_by TEXT NOT NULL DEFAULT '',
    undone_at TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS mark (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS opinion_item ON opinion (item);
"""


_DECIDED = "label || '/' || kind || '/' || mask"
_UNPLACED = (
    f"((state = 'decided' AND placed != {_DECIDED}) OR (state != 'decided' AND placed != ''))"
)


class ReviewQueue:
    """Images to review and opinions about them.

    Args:
        folder: holds everything; made if absent.

    Example:
        >>> queue = ReviewQueue()
        >>> for item in queue.list_items(category="bottle"):
        ...     queue.decide([item.id], "defect", kind="scratch", by="A. Person")
    """

    def __init__(self, folder: Path = OUTPUTS.review) -> None:
        self._folder = folder

    def add(self, candidates: Sequence[Candidate]) -> int:
        """Put images into the queue; an image that is there gains the reason. Gives how many are new.

        Raises:
            DataError: if the queue cannot be written.
            OSError: if the disk refuses.
        """
        added = 0
        for one in candidates:
            with self._open() as db:
                added += self._add(db, one)
        return added

    def list_items(
        self,
        *,
        category: str | None = None,
        reason: Reason | None = None,
        states: Sequence[State] = WAITING,
        limit: int = 500,
    ) -> list[Item]:
        """Items, those that help most first: disputed, then by reason (`REASONS`), then by doubt.

        Args:
            category: only of it.
            reason: only for it.
            states: only in these.
            limit: at most so many.
        """
        marks = ", ".join("?" * len(states))
        with self._open() as db:
            rows = db.execute(
                f"SELECT * FROM item WHERE state IN ({marks}) AND (? IS NULL OR category = ?) "
                "AND (? IS NULL OR reason = ?) ORDER BY state = 'unsure', state = 'disputed' DESC, "
                "rank, doubt DESC, at DESC, id LIMIT ?",
                (*states, category, category, reason, reason, limit),
            ).fetchall()
        return [self._to_item(row) for row in rows]

    def find(self, item: str) -> Item:
        """The item of an id.

        Raises:
            DataError: if there is none.
        """
        with self._open() as db:
            return self._to_item(_find(db, item))

    def has(self, item: str) -> bool:
        """Whether an id is known, and its image was not deleted."""
        with self._open() as db:
            row = db.execute("SELECT image FROM item WHERE id = ?", (item,)).fetchone()
            return row is not None and bool(row["image"])

    def count(self) -> dict[tuple[str, Reason, State], int]:
        """How many items there are, by category, reason and state."""
        with self._open() as db:
            rows = db.execute("SELECT category, reason, state, COUNT(*) FROM item GROUP BY 1, 2, 3")
            return {(row[0], row[1], row[2]): row[3] for row in rows}

    def count_wrong(self, *, since: datetime) -> dict[tuple[str, str], int]:
        """Parts that were judged and are otherwise, by category and what they are: good or defect.

        Args:
            since: when the parts were judged, at the earliest.
        """
        verdict = "json_extract(answer, '$.verdict')"
        with self._open() as db:
            rows = db.execute(
                f"SELECT category, label, COUNT(*) FROM item WHERE at >= ? AND ((label = 'defect' AND "
                f"{verdict} = 'normal') OR (label = 'good' AND {verdict} = 'anomalous')) GROUP BY 1, 2",
                (since.isoformat(),),
            )
            return {(row[0], row[1]): row[2] for row in rows}

    def decide(
        self,
        items: Sequence[str],
        label: Label,
        *,
        by: str,
        kind: str = "",
        mask: NDArray[np.bool_] | bytes | None = None,
        boxes: Sequence[Sequence[int]] = (),
        note: str = "",
        role: str = REVIEWER,
        at: str = "",
    ) -> list[Item]:
        """Record what a person says about items, all of them or none; gives them as they are now.

        The last word of each reviewer counts. Reviewers who disagree make an item `disputed`, until one of
        them changes their mind or a majority has another opinion.

        Args:
            items: ids.
            label: good, defect, or unsure.
            by: who says so.
            kind: of the defect, such as `scratch`; empty: not named.
            mask: [H, W] bool at the image's size, or a PNG file's bytes; for one item.
            boxes: (x, y, width, height) in px around the defect, instead of a mask; for one item.
            note: further words.
            role: `reviewer`, or `line`.
            at: when it was said, ISO 8601; empty: now.

        Raises:
            DataError: if an id is unknown, the name is missing, or mask or boxes do not fit.
        """
        is_marked = mask is not None or bool(boxes)
        by, kind = check_opinion(label, by=by, kind=kind, note=note, is_marked=is_marked)
        if len(items) > 1 and is_marked:
            raise DataError("a mask or a box is of one image")
        with self._open() as db:
            rows = [_find(db, one) for one in items]
            for row in rows:
                if row["state"] == "expired":
                    raise DataError(
                        f"item {row['id']}: its image was deleted, nobody looked in time"
                    )
                drawn = self._save_mask(row, mask, boxes)
                db.execute(
                    "INSERT INTO opinion (item, role, label, kind, mask, boxes, by, at, note) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        *(row["id"], role, label, kind, drawn),
                        json.dumps([[int(value) for value in box] for box in boxes]),
                        *(by, at or _now(), note),
                    ),
                )
                _settle(db, row["id"])
            return [self._to_item(_find(db, one)) for one in items]

    def tell(
        self,
        one: Candidate,
        label: Label,
        *,
        by: str,
        kind: str = "",
        mask: bytes | None = None,
        boxes: Sequence[Sequence[int]] = (),
        note: str = "",
        at: str = "",
    ) -> str:
        """Queue an image with what somebody on the line says about it, once; gives the item's id.

        Raises:
            DataError: as for `decide`.
        """
        self.add([one])
        item = item_id(one.category, hashlib.sha256(one.content).hexdigest())
        said = self.history(item=item) if at else []
        if not any((o.by, o.at.isoformat()) == (by.strip(), at) for o in said):
            self.decide(
                [item], label, by=by, kind=kind, mask=mask, boxes=boxes, note=note, role=LINE, at=at
            )
        return item

    def undo(self, opinion: int, *, by: str) -> Item:
        """Take an opinion back, whoever gave it; it stays on record. Gives the item as it is now.

        What was placed in the data already is taken out of them by the next `onenip review apply`.

        Raises:
            DataError: if there is no such opinion, or it was taken back before.
        """
        by = check_person(by)
        with self._open() as db:
            row = db.execute(
                "SELECT item, undone_by FROM opinion WHERE id = ?", (opinion,)
            ).fetchone()
            if row is None or row["undone_by"]:
                raise DataError(
                    f"opinion {opinion}: " + ("taken back before" if row else "unknown")
                )
            db.execute(
                "UPDATE opinion SET undone_by = ?, undone_at = ? WHERE id = ?",
                (by, _now(), opinion),
            )
            _settle(db, row["item"])
            return self._to_item(_find(db, row["item"]))

    def history(
        self, *, item: str | None = None, by: str | None = None, limit: int = 200
    ) -> list[Opinion]:
        """Opinions, the latest first, those that were taken back too; of an item or a person, if given."""
        with self._open() as db:
            rows = db.execute(
                "SELECT * FROM opinion WHERE (? IS NULL OR item = ?) AND (? IS NULL OR by = ?) "
                "ORDER BY id DESC LIMIT ?",
                (item, item, by, by, limit),
            ).fetchall()
        return [self._to_opinion(row) for row in rows]

    def list_unplaced(self) -> list[Item]:
        """Items whose place in the data is not, or no longer, what was decided: label, kind and mask."""
        with self._open() as db:
            rows = db.execute(f"SELECT * FROM item WHERE {_UNPLACED} ORDER BY at, id").fetchall()
        return [self._to_item(row) for row in rows]

    def mark_placed(
        self, item: Item, *, place: str, is_placed: bool = True, problem: str = ""
    ) -> None:
        """Note where in the data an item lies now, by the decision that it holds, or why it does not."""
        mask = f"masks/{item.mask.name}" if item.mask else ""
        placed = f"{item.label}/{item.kind}/{mask}" if is_placed else ""
        with self._open() as db:
            db.execute(
                "UPDATE item SET place = ?, problem = ?, placed = ? WHERE id = ?",
                (place, problem, placed, item.id),
            )

    def retire(self, item: str, problem: str) -> None:
        """Take an item off the queue without a decision, because it was dealt with in another way."""
        with self._open() as db:
            db.execute(
                "UPDATE item SET state = 'expired', problem = ? WHERE id = ? AND state != 'decided'",
                (problem, item),
            )

    def read_mark(self, name: str) -> str:
        """How far a source was read, as `write_mark` noted it; empty at first."""
        with self._open() as db:
            row = db.execute("SELECT value FROM mark WHERE name = ?", (name,)).fetchone()
            return str(row["value"]) if row else ""

    def write_mark(self, name: str, value: str) -> None:
        """Note how far a source was read."""
        with self._open() as db:
            db.execute("INSERT OR REPLACE INTO mark VALUES (?, ?)", (name, value))

    def trim(self, *, days: float, gigabytes: float) -> int:
        """Delete the images of items that nobody looked at in time, or for which there is no room.

        Decided items keep theirs until they are placed. What was said stays on record. Gives how many went.

        Args:
            days: that an image waits at most.
            gigabytes: of all images; the least helpful go first.
        """
        oldest = (datetime.now(tz=UTC) - timedelta(days=days)).isoformat()
        gone = 0
        with self._open() as db:
            rows = db.execute(
                f"SELECT * FROM item WHERE image != '' AND NOT ({_UNPLACED}) "
                "ORDER BY placed = '', rank DESC, doubt, at"
            ).fetchall()
            room = gigabytes * 1e9 - sum(
                path.stat().st_size for path in self._folder.rglob("*.*") if path.is_file()
            )
            for row in rows:
                if row["added_at"] >= oldest and room >= 0:
                    continue
                for path in (self._folder / row[name] for name in ("image", "map") if row[name]):
                    room += path.stat().st_size if path.is_file() else 0
                    path.unlink(missing_ok=True)
                state = row["state"] if row["state"] == "decided" else "expired"
                db.execute(
                    "UPDATE item SET image = '', map = '', state = ? WHERE id = ?",
                    (state, row["id"]),
                )
                gone += 1
        return gone

    def _add(self, db: sqlite3.Connection, one: Candidate) -> int:
        sha256 = hashlib.sha256(one.content).hexdigest()
        item = item_id(one.category, sha256)
        known = db.execute("SELECT rank, detail, state FROM item WHERE id = ?", (item,)).fetchone()
        if known is not None and known["state"] != "expired":
            if one.detail and one.detail not in known["detail"]:
                detail = "; ".join(filter(None, [known["detail"], one.detail]))
                db.execute("UPDATE item SET detail = ? WHERE id = ?", (detail, item))
            rank = REASONS.index(one.reason)
            db.execute(
                "UPDATE item SET reason = ?, rank = ?, doubt = ? WHERE id = ? AND rank > ?",
                (one.reason, rank, one.doubt, item, rank),
            )
            return 0
        image = Path("images", f"{item}{one.suffix}")
        with write_whole(self._folder / image) as draft:
            draft.write_bytes(one.content)
        drawn = Path("maps", f"{item}.npz") if one.score_map is not None else None
        if one.score_map is not None and drawn is not None:
            with write_whole(self._folder / drawn) as draft:
                save_map(draft, one.score_map, one.pixel_threshold)
        values = {
            "id": item,
            "category": one.category,
            "reason": one.reason,
            "rank": REASONS.index(one.reason),
            "doubt": one.doubt,
            "detail": one.detail,
            "source": one.source,
            "sha256": sha256,
            "image": image.as_posix(),
            "map": drawn.as_posix() if drawn else "",
            "answer": json.dumps(dict(one.answer)),
            "at": (one.at or datetime.now(tz=UTC)).isoformat(),
            "added_at": _now(),
        }
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        db.execute(
            f"INSERT OR REPLACE INTO item ({names}) VALUES ({marks})", tuple(values.values())
        )
        _settle(db, item)
        return 1

    def _save_mask(
        self,
        row: sqlite3.Row,
        mask: NDArray[np.bool_] | bytes | None,
        boxes: Sequence[Sequence[int]],
    ) -> str:
        """Write the mask that was drawn; gives its path below the folder, empty without one."""
        if mask is None and not boxes:
            return ""
        found = draw_marks(mask, boxes, read_size(self._folder / row["image"]))
        packed = BytesIO()
        Image.fromarray(found.astype(np.uint8) * 255).save(packed, "PNG")
        name = f"masks/{row['id']}-{hashlib.sha256(packed.getvalue()).hexdigest()[:12]}.png"
        with write_whole(self._folder / name) as draft:
            draft.write_bytes(packed.getvalue())
        return name

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """The file, in a transaction that ends whole or not at all."""
        path = self._folder / "review.sqlite"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(path, timeout=30.0, isolation_level=None)) as db:
                db.row_factory = sqlite3.Row
                db.executescript(_SCHEMA)
                db.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                except BaseException:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                    raise
                db.execute("COMMIT")
        except sqlite3.Error as error:
            raise DataError(f"{path}: {error}", path=path) from error

    def _to_item(self, row: sqlite3.Row) -> Item:
        values = {key: row[key] for key in row.keys() if key not in ("rank", "added_at")}  # noqa: SIM118
        for name in ("image", "map", "mask"):
            values[name] = self._folder / row[name] if row[name] or name == "image" else None
        return Item(
            **values
            | {"answer": json.loads(row["answer"]), "at": datetime.fromisoformat(row["at"])}
        )

    def _to_opinion(self, row: sqlite3.Row) -> Opinion:
        values = dict(row)
        values["mask"] = self._folder / row["mask"] if row["mask"] else None
        values["boxes"] = tuple(tuple(box) for box in json.loads(row["boxes"]))
        for name in ("at", "undone_at"):
            values[name] = datetime.fromisoformat(row[name]) if row[name] else None
        return Opinion(**values)


def _find(db: sqlite3.Connection, item: str) -> sqlite3.Row:
    row: sqlite3.Row | None = db.execute("SELECT * FROM item WHERE id = ?", (item,)).fetchone()
    if row is None:
        raise DataError(f"item {item}: not in the review queue")
    return row


def _settle(db: sqlite3.Connection, item: str) -> None:
    """Bring an item's state to what its reviewers say: the last word of each, a majority if they differ.

    Kind and mask that no reviewer gave are those that the line gave, if it said the same.
    """
    rows = db.execute(
        "SELECT * FROM opinion WHERE item = ? AND undone_by = '' ORDER BY id", (item,)
    ).fetchall()
    last = {row["by"]: row for row in rows if row["role"] == REVIEWER}
    votes = Counter(row["label"] for row in last.values() if row["label"] != "unsure")
    label, count = max(votes.items(), key=lambda one: one[1], default=("", 0))
    state: State = "unsure" if last else "open"
    if votes:
        state = "decided" if 2 * count > votes.total() else "disputed"
    said = [*(row for row in rows if row["role"] == LINE), *last.values()]
    agreeing = [row for row in said if state == "decided" and row["label"] == label]
    db.execute(
        "UPDATE item SET state = ?, label = ?, kind = ?, mask = ?, problem = '' "
        "WHERE id = ? AND state != 'expired'",
        (
            state,
            label if state == "decided" else "",
            next((row["kind"] for row in reversed(agreeing) if row["kind"] not in ("", DEFECT)), "")
            or (DEFECT if state == "decided" and label == DEFECT else ""),
            next((row["mask"] for row in reversed(agreeing) if row["mask"]), ""),
            item,
        ),
    )


def _now() -> str:
    return datetime.now(tz=UTC).isoformat(timespec="seconds")
