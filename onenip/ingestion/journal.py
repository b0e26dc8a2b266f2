"""The journal of arrivals: a SQLite file in the checkout, written before and after every step.

It is a memory, not the truth: without it, images already in the data are recognised by their bytes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

State = Literal["arrived", "judged", "placed", "committed", "done"]
Outcome = Literal["", "accepted", "quarantine", "held", "duplicates"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS item (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    version TEXT NOT NULL,
    size INTEGER NOT NULL,
    arrived_at TEXT NOT NULL,
    category TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'arrived',
    outcome TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '',
    sha256 TEXT NOT NULL DEFAULT '',
    name TEXT NOT NULL DEFAULT '',
    digest TEXT NOT NULL DEFAULT '',
    score REAL,
    threshold REAL,
    distance REAL,
    trained TEXT NOT NULL DEFAULT '',
    UNIQUE (key, version)
);
CREATE INDEX IF NOT EXISTS item_state ON item (state, outcome);
CREATE INDEX IF NOT EXISTS item_sha256 ON item (sha256);
DROP TABLE IF EXISTS known;  -- of version 0.1: without pixels
CREATE TABLE IF NOT EXISTS known_image (
    path TEXT PRIMARY KEY,
    stamp TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    pixels TEXT NOT NULL,
    phash INTEGER NOT NULL,
    thumbnail BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS withdrawn (sha256 TEXT PRIMARY KEY);
"""

_UNTRAINED = "outcome = 'accepted' AND trained = '' AND state IN ('placed', 'committed', 'done')"


@dataclass(frozen=True)
class Item:
    """One arrival and what became of it.

    Attributes:
        id: counted from 1.
        key: path below the inbox.
        version: of the object.
        size: in bytes.
        arrived_at: UTC.
        category: first folder of the key.
        state: arrived → judged → placed → committed → done; only accepted images are placed.
        outcome: empty until it is judged.
        reason: why it was not accepted; of an accepted one, which image of the data it nearly equals.
        sha256: of its bytes, empty until it is judged.
        name: path below the data root where it is placed, or below the shelf it is moved to.
        digest: of the champion that looked at it, empty if there was none.
        score: image score that the champion gave it.
        threshold: above which the champion calls an image anomalous.
        distance: of its embedding from the nearest prompt.
        trained: digest of the first model that was trained with it, empty before.
    """

    id: int
    key: str
    version: str
    size: int
    arrived_at: datetime
    category: str
    state: State
    outcome: Outcome
    reason: str
    sha256: str
    name: str
    digest: str
    score: float | None
    threshold: float | None
    distance: float | None
    trained: str


class Journal:
    """All arrivals of a checkout.

    Args:
        path: the SQLite file; made with its folder if absent.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes inside, or none."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:  # a full disk ends it by itself
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def add(
        self, *, key: str, version: str, size: int, arrived_at: datetime, category: str
    ) -> None:
        """Remember an arrival; one that is being dealt with stays as it is.

        An object that is in the inbox again after it was dealt with is a new arrival, even under
        the same key and with the same content.
        """
        self._db.execute(
            "UPDATE item SET version = version || '@' || id "
            "WHERE key = ? AND version = ? AND state = 'done'",
            (key, version),
        )
        self._db.execute(
            "INSERT OR IGNORE INTO item (key, version, size, arrived_at, category) "
            "VALUES (?, ?, ?, ?, ?)",
            (key, version, size, arrived_at.astimezone(UTC).isoformat(), category),
        )

    def update(self, item: Item, values: Mapping[str, str | float | None]) -> None:
        """Set columns of an item."""
        columns = ", ".join(f"{name} = ?" for name in values)
        self._db.execute(f"UPDATE item SET {columns} WHERE id = ?", (*values.values(), item.id))

    def list_items(
        self,
        *,
        state: State | None = None,
        outcome: Outcome | None = None,
        after: int = 0,
        limit: int = -1,
    ) -> list[Item]:
        """Items in the order of their arrival in the journal.

        Args:
            state: only those in it.
            outcome: only those with it.
            after: only those with a higher `id`.
            limit: at most so many; -1 means all.
        """
        rows = self._db.execute(
            "SELECT * FROM item WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR outcome = ?2) "
            "AND id > ?3 ORDER BY id LIMIT ?4",
            (state, outcome, after, limit),
        )
        return [_to_item(row) for row in rows]

    def latest(self, category: str, *, limit: int) -> list[Item]:
        """The latest judged images of a category that were accepted or held, newest first.

        An image that was held and then released counts once, as what it became last.
        """
        rows = self._db.execute(
            "SELECT * FROM item WHERE id IN (SELECT MAX(id) FROM item WHERE category = ? "
            "AND outcome IN ('accepted', 'held') "
            "GROUP BY CASE sha256 WHEN '' THEN CAST(id AS TEXT) ELSE sha256 END) "
            "ORDER BY id DESC LIMIT ?",
            (category, limit),
        )
        return [_to_item(row) for row in rows]

    def list_unremoved(self) -> set[tuple[str, str]]:
        """Key and version of images that are in the data and still in the inbox."""
        rows = self._db.execute(
            "SELECT key, version FROM item WHERE state IN ('placed', 'committed')"
        )
        return {(row["key"], row["version"]) for row in rows}

    def count_untrained(self) -> dict[str, tuple[int, datetime]]:
        """By category, how many images in the data no model was trained with yet, and the oldest's time."""
        rows = self._db.execute(
            f"SELECT category, COUNT(*), MIN(arrived_at) FROM item WHERE {_UNTRAINED} GROUP BY category"
        )
        return {name: (count, datetime.fromisoformat(oldest)) for name, count, oldest in rows}

    def last_id(self) -> int:
        """Number of the latest arrival, 0 if there is none."""
        return int(self._db.execute("SELECT COALESCE(MAX(id), 0) FROM item").fetchone()[0])

    def mark_trained(self, *, digest: str, last: int) -> None:
        """Remember the model that was trained with all images in the data up to the arrival `last`."""
        self._db.execute(
            f"UPDATE item SET trained = ? WHERE {_UNTRAINED} AND id <= ?", (digest, last)
        )

    def is_placed(self, sha256: str) -> bool:
        """Whether an image with this content is being placed, or was."""
        row = self._db.execute(
            "SELECT 1 FROM item WHERE sha256 = ? AND outcome = 'accepted' LIMIT 1", (sha256,)
        ).fetchone()
        return row is not None

    # -- images that are in the data --------------------------------------------------------------

    def read_known(self) -> dict[str, tuple[str, str, str, int, bytes]]:
        """Path to (stamp, sha256, hash of pixels, perceptual hash, thumbnail) of images seen in the data."""
        columns = "path, stamp, sha256, pixels, phash, thumbnail"
        rows = self._db.execute(f"SELECT {columns} FROM known_image")
        return {row["path"]: tuple(row)[1:] for row in rows}

    def write_known(self, rows: Mapping[str, tuple[str, str, str, int, bytes]]) -> None:
        """Remember images of the data."""
        with self.transaction():
            self._db.executemany(
                "INSERT OR REPLACE INTO known_image VALUES (?, ?, ?, ?, ?, ?)",
                [(path, *values) for path, values in rows.items()],
            )

    def note_withdrawn(self, sha256: str) -> None:
        """Remember an image that was trained on and leaves the data."""
        self._db.execute("INSERT OR IGNORE INTO withdrawn VALUES (?)", (sha256,))

    def was_withdrawn(self, sha256: str) -> bool:
        """Whether an image was among the training images before."""
        found = self._db.execute("SELECT 1 FROM withdrawn WHERE sha256 = ?", (sha256,))
        return found.fetchone() is not None

    def forget_known(self, paths: Sequence[str]) -> None:
        """Forget images that are no longer in the data."""
        with self.transaction():
            self._db.executemany(
                "DELETE FROM known_image WHERE path = ?", [(path,) for path in paths]
            )


def _to_item(row: Any) -> Item:
    values = dict(row)
    values["arrived_at"] = datetime.fromisoformat(values["arrived_at"])
    return Item(**values)
