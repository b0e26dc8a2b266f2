"""What an inbox is, whether it is a folder or a prefix of an S3 bucket."""

from __future__ import annotations

import errno
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from onenip.data.labels import UNSORTED, clean_name
from onenip.errors import ArrivalError, SourceError

Shelf = Literal["quarantine", "held", "duplicates"]
SHELVES: tuple[Shelf, ...] = ("quarantine", "held", "duplicates")
NOTE_SUFFIX = ".json"
RELEASED = "released"  # shelf of notes on what a person let pass
DEFECTIVE = "defective"  # shelf of held images that people confirmed as defects

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@dataclass(frozen=True)
class Arrival:
    """One object in the inbox.

    Attributes:
        key: path below the inbox, POSIX separators, such as `bottle/0001.png`.
        version: changes whenever its content is replaced.
        size: in bytes.
        arrived_at: UTC.
    """

    key: str
    version: str
    size: int
    arrived_at: datetime

    @property
    def category(self) -> str:
        """First folder of the key as a category's name is kept; empty if it lies in none."""
        first, slash, _ = self.key.partition("/")
        return clean_name(first) if slash else ""


class Inbox(ABC):
    """Where images arrive. Every method may be called again after a kill, to the same effect."""

    @abstractmethod
    def list_arrivals(self, *, shelf: Shelf | None = None) -> Iterator[Arrival]:
        """Complete objects in the inbox, or on a shelf (with their notes), as they come.

        Raises:
            SourceError: if the inbox is missing or cannot be reached.
        """

    @abstractmethod
    def fetch(self, arrival: Arrival, path: Path, *, shelf: Shelf | None = None) -> bool:
        """Copy an object of the inbox, or of a shelf, to a file; whether it is still there, in this version.

        Raises:
            ArrivalError: if it cannot be read.
            SourceError: if the inbox cannot be reached, or the disk is full.
        """

    @abstractmethod
    def remove(self, arrival: Arrival) -> None:
        """Remove an object, unless its content was replaced since.

        Raises:
            ArrivalError: if it cannot be removed.
        """

    @abstractmethod
    def set_aside(
        self, arrival: Arrival, *, shelf: Shelf, name: str, note: Mapping[str, Any]
    ) -> None:
        """Move an object to a shelf, with a note beside it.

        Args:
            arrival: what to move.
            shelf: where to.
            name: path below the shelf; the same image always gets the same one.
            note: who decided what and why.

        Raises:
            ArrivalError: if it cannot be moved.
        """

    @abstractmethod
    def read_note(self, shelf: str, name: str) -> dict[str, Any] | None:
        """The note of an image on a shelf, None if there is none."""

    @abstractmethod
    def release(self, name: str, *, note: Mapping[str, Any]) -> None:
        """Move a held image back to where it arrived, marked as looked at; see `is_released`.

        Args:
            name: path below the shelf `held`.
            note: who released it and why; its `sha256` is what is marked.

        Raises:
            SourceError: if no such image is held.
        """

    @abstractmethod
    def deliver(self, path: Path, key: str, *, note: Mapping[str, Any]) -> None:
        """Put a file into the inbox, marked as looked at; see `is_released`.

        Args:
            path: the file.
            key: path below the inbox that it gets.
            note: who looked and why; its `sha256` is what is marked.

        Raises:
            SourceError: if the inbox is missing or cannot be reached.
        """

    @abstractmethod
    def confirm_defect(self, name: str, *, note: Mapping[str, Any]) -> None:
        """Move a held image to the shelf `defective`, because people said that it shows a defect.

        Args:
            name: path below the shelf `held`.
            note: who said so and when.

        Raises:
            SourceError: if no such image is held.
        """

    def is_released(self, sha256: str) -> bool:
        """Whether a person has looked at an image with this content and let it pass."""
        return self.read_note(RELEASED, sha256) is not None


def render_note(note: Mapping[str, Any]) -> str:
    """A note as it is written down."""
    return json.dumps(dict(note), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def parse_note(content: bytes) -> dict[str, Any]:
    """A note that was written down; empty if it is damaged."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def find_origin(name: str, note: Mapping[str, Any] | None) -> str:
    """Key in the inbox that an image on a shelf came from.

    Args:
        name: path below the shelf.
        note: the shelf's note on the image; its key counts if it stays inside of the inbox.
    """
    key = str((note or {}).get("key") or "")
    parts = PurePosixPath(key).parts
    if parts and ".." not in parts and not PurePosixPath(key).is_absolute() and "\\" not in key:
        return key
    return name.removeprefix(f"{UNSORTED}/")


@contextmanager
def file_refusals(path: Path, *, target: Path | None = None) -> Iterator[None]:
    """Turn what a disk refuses into an `ArrivalError` that names the path.

    A full or read-only disk is a `SourceError` that names `target`: no other file would fare better.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise SourceError(f"{target or path}: {error.strerror or error}") from error
        raise ArrivalError(f"{path}: {error.strerror or error}") from error
