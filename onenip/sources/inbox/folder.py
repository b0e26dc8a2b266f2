"""A folder as an inbox."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from onenip.errors import SourceError
from onenip.folders import walk_files, write_whole
from onenip.sources.inbox.base import (
    DEFECTIVE,
    NOTE_SUFFIX,
    RELEASED,
    Arrival,
    Inbox,
    Shelf,
    file_refusals,
    find_origin,
    parse_note,
    render_note,
)

_LATEST_SECONDS = 250_000_000_000.0  # the year 9892

log = logging.getLogger(__name__)


class FolderInbox(Inbox):
    """A folder, perhaps on a network drive that cameras write to."""

    def __init__(self, folder: Path, *, settle_seconds: float = 0.0) -> None:
        self._folder = folder
        self._settle_seconds = settle_seconds

    def list_arrivals(self, *, shelf: Shelf | None = None) -> Iterator[Arrival]:
        """See `Inbox`; links are followed; files of operating systems and those that may grow are left out.

        A file that is dated in the future has no usable age: it is looked at twice instead.
        """
        root = self._shelf(shelf) if shelf else self._folder
        if not root.is_dir():
            if shelf:
                return
            raise SourceError(f"retrain.inbox: there is no folder {root}")
        now = datetime.now(tz=UTC).timestamp()
        undated: list[Arrival] = []
        young = 0
        for path in walk_files(root):
            found = _stat(path)
            if found is None:
                continue
            if not _is_text(path):
                log.warning("%r: left in the inbox: its name is not UTF-8; rename it", str(path))
                continue
            arrival = _to_arrival(path.relative_to(root).as_posix(), found)
            age = now - found.st_mtime
            if shelf or age >= self._settle_seconds:
                yield arrival
            elif age <= -self._settle_seconds:
                undated.append(arrival)
            else:
                young += 1
        if young:
            text = "%s: %d younger than %g s, which may still grow, left for the next time"
            log.info(text, root, young, self._settle_seconds)
        if undated:
            time.sleep(self._settle_seconds)
        yield from filter(self._is_same, undated)

    def fetch(self, arrival: Arrival, path: Path, *, shelf: Shelf | None = None) -> bool:
        """See `Inbox`."""
        source = (self._shelf(shelf) if shelf else self._folder) / arrival.key
        with file_refusals(source, target=path):
            try:
                shutil.copyfile(source, path)
            except FileNotFoundError:
                return False
        return self._is_same(arrival, source)

    def remove(self, arrival: Arrival) -> None:
        """See `Inbox`."""
        if self._is_same(arrival):
            with file_refusals(self._folder / arrival.key):
                (self._folder / arrival.key).unlink(missing_ok=True)

    def set_aside(
        self, arrival: Arrival, *, shelf: Shelf, name: str, note: Mapping[str, Any]
    ) -> None:
        """See `Inbox`."""
        target = self._shelf(shelf) / name
        with file_refusals(target):
            self._write_note(shelf, name, note)
            if self._is_same(arrival):
                shutil.move(self._folder / arrival.key, target)

    def read_note(self, shelf: str, name: str) -> dict[str, Any] | None:
        """See `Inbox`."""
        try:
            return parse_note((self._shelf(shelf) / f"{name}{NOTE_SUFFIX}").read_bytes())
        except FileNotFoundError:
            return None

    def release(self, name: str, *, note: Mapping[str, Any]) -> None:
        """See `Inbox`."""
        source = self._shelf("held") / name
        if not source.is_file():
            raise SourceError(f"no held image {name}")
        with file_refusals(source):
            target = self._folder / find_origin(name, self.read_note("held", name))
            if target.exists():  # another image arrived there since
                target = target.with_name(source.name)
            self._write_note(RELEASED, str(note["sha256"]), note)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(source, target)
            (self._shelf("held") / f"{name}{NOTE_SUFFIX}").unlink(missing_ok=True)

    def deliver(self, path: Path, key: str, *, note: Mapping[str, Any]) -> None:
        """See `Inbox`."""
        with file_refusals(path, target=self._folder):
            self._write_note(RELEASED, str(note["sha256"]), note)
            with write_whole(self._folder / key) as draft:
                shutil.copyfile(path, draft)

    def confirm_defect(self, name: str, *, note: Mapping[str, Any]) -> None:
        """See `Inbox`."""
        source, target = self._shelf("held") / name, self._shelf(DEFECTIVE) / name
        if not source.is_file():
            raise SourceError(f"no held image {name}")
        with file_refusals(source):
            self._write_note(DEFECTIVE, name, note)
            shutil.move(source, target)
            (self._shelf("held") / f"{name}{NOTE_SUFFIX}").unlink(missing_ok=True)

    def _shelf(self, shelf: str) -> Path:
        return self._folder.with_name(f"{self._folder.name}-{shelf}")

    def _write_note(self, shelf: str, name: str, note: Mapping[str, Any]) -> None:
        path = self._shelf(shelf) / f"{name}{NOTE_SUFFIX}"
        with write_whole(path) as draft:
            draft.write_text(render_note(note), encoding="utf-8")

    def _is_same(self, arrival: Arrival, path: Path | None = None) -> bool:
        found = _stat(path or self._folder / arrival.key)
        return found is not None and _to_arrival(arrival.key, found).version == arrival.version


def _is_text(path: Path) -> bool:
    """Whether a path can be written down."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _stat(path: Path) -> os.stat_result | None:
    try:
        found = path.stat()
    except OSError:  # gone, or a link to nowhere
        return None
    return found if path.is_file() else None


def _to_arrival(key: str, found: os.stat_result) -> Arrival:
    # a clock may be in a year that has five digits
    arrived_at = datetime.fromtimestamp(min(max(found.st_mtime, 0.0), _LATEST_SECONDS), tz=UTC)
    return Arrival(key, f"{found.st_size}-{found.st_mtime_ns}", found.st_size, arrived_at)
