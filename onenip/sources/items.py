"""What a source hands over: files with their place in the data set, and where they came from.

Also the workspace in which it fetches them, which survives a kill, and knows what the last download
brought, so that unchanged files are not fetched again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onenip.errors import SourceError
from onenip.images import hash_file


@dataclass(frozen=True)
class Item:
    """One file on its way into the data set.

    Attributes:
        target: where it goes, relative to the data root, in MVTec layout, POSIX separators.
        file: where its bytes are now.
        is_mask: a mask that has to be rewritten as PNG with the values 0 and 255.
        tag: what the origin calls this version of the file, such as its ETag; "" if nothing.
        more: further masks of the same image, to be united with this one.
        draw: gives the mask, [H, W] bool, of the image `file`; None for what is a file already.
    """

    target: str
    file: Path
    is_mask: bool = False
    tag: str = ""
    more: tuple[Path, ...] = ()
    draw: Callable[[Path], NDArray[np.bool_]] | None = None


@dataclass(frozen=True)
class Origin:
    """Where files came from, and on what terms.

    Attributes:
        source: what the user named.
        address: the folder or address that was read.
        licence: its name, or "unknown".
        citation: the publication to cite, or "".
        sha256: of the archive that was read, 64 hex digits, or "".
        is_pinned: whether that checksum was known before.
        tag: what the server calls this version of the archive, or "".
    """

    source: str
    address: str
    licence: str = "unknown"
    citation: str = ""
    sha256: str = ""
    is_pinned: bool = False
    tag: str = ""


@dataclass(frozen=True)
class Fetched:
    """Everything that one source names."""

    items: list[Item]
    origin: Origin


@dataclass(frozen=True)
class Workspace:
    """Where a source may write, and what it may reuse.

    Attributes:
        folder: for partial and complete downloads; kept until the data set was moved in.
        data_dir: the data set as the last download left it.
        record: of the last download, as `artifacts/download/origin.json` holds it.
        workers: parallel transfers.
        limits: of archives.
    """

    folder: Path
    data_dir: Path
    record: dict[str, Any] = field(default_factory=dict)
    workers: int = 8
    limits: Limits = field(default_factory=lambda: Limits())

    def previous(self, source: str) -> dict[str, Any]:
        """Record of a source in the last download; empty if it was not among its sources."""
        for entry in self.record.get("sources", []):
            if entry.get("source") == source:
                return dict(entry)
        return {}

    def reuse(self, source: str, target: str, tag: str) -> Path | None:
        """File of the data set that is still what `tag` named at the last download, if there is one."""
        entry = self.previous(source).get("files", {}).get(target)
        path = self.data_dir / target
        if not entry or not tag or entry["tag"] != tag or not path.is_file():
            return None
        return path if hash_file(path) == entry["sha256"] else None

    def reuse_all(self, source: str) -> list[Item] | None:
        """All files of a source, if the data set still holds each as the last download left it."""
        files = self.previous(source).get("files", {})
        items = [Item(target, self.data_dir / target, tag=files[target]["tag"]) for target in files]
        if not items or not all(
            item.file.is_file() and hash_file(item.file) == files[item.target]["sha256"]
            for item in items
        ):
            return None
        return items

    def slot(self, *identity: str) -> Path:
        """Path for a download in the workspace, the same for the same identity."""
        digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:32]
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / digest


@dataclass(frozen=True)
class Limits:
    """What an archive may be.

    Attributes:
        total_bytes: of all its files together, unpacked.
        ratio: of unpacked to packed size.
        files: number of entries.
    """

    total_bytes: int = 100 * 2**30
    ratio: float = 200.0
    files: int = 2_000_000


class Source(Protocol):
    """A place that images come from."""

    @property
    def name(self) -> str:
        """What the user named."""
        ...

    def fetch(self, workspace: Workspace) -> Fetched:
        """Bring everything that the source names within reach, resuming what was begun before.

        Raises:
            SourceError: if it cannot be read completely, or holds something unsafe.
        """
        ...


def check_relative(name: str, origin: str) -> PurePosixPath:
    """A name from outside as a relative path that stays below its root.

    Raises:
        SourceError: if it is absolute, climbs, or means another path elsewhere.
    """
    path = PurePosixPath(name)
    is_drive = len(name) > 1 and name[1] == ":"
    if path.is_absolute() or is_drive or ".." in path.parts or "\\" in name or "\0" in name:
        raise SourceError(f"{origin}: refused, because the name {name!r} leads out of its folder")
    return path


def read_record(path: Path) -> dict[str, Any]:
    """Record of the last download; empty if there is none, or it is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
