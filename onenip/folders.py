"""Walks over folders, and files and folders that change whole or not at all.

Whole means wherever a kill or a power cut lands.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_JUNK = frozenset(
    {"__macosx", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r", "picasa.ini",
     "$recycle.bin", "recycler", "#recycle", "#snapshot", "@eadir", "@recycle", "@__thumb",
     "system volume information", "lost+found", "temporary items", "network trash folder"}
)  # fmt: skip
_AT_FDCWD = -100
_EXCHANGE = 2  # Linux: both names change in one step


def is_junk(parts: Iterable[str]) -> bool:
    """Whether a path is an operating system's own file, or hidden."""
    return any(part.startswith(".") or part.casefold() in _JUNK for part in parts)


def walk_files(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is no folder itself, sorted; operating systems' files are left out.

    Links to folders are followed, each such folder once, and never back into a folder above.

    Raises:
        OSError: if a folder cannot be read.
    """
    yield from _walk(folder, (os.path.realpath(folder),), set())


def _walk(folder: Path, above: tuple[str, ...], linked: set[str]) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if is_junk([entry.name]):
            continue
        path = folder / entry.name
        if not (path.is_dir() if entry.is_symlink() else entry.is_dir()):
            yield path
            continue
        real = os.path.realpath(path)
        if real in above or (path.is_symlink() and real in linked):
            continue
        if path.is_symlink():
            linked.add(real)
        yield from _walk(path, (*above, real), linked)


@contextmanager
def write_whole(path: Path, *, is_durable: bool = True) -> Iterator[Path]:
    """A draft beside a file, which takes its place when the block ends well.

    The draft has a name of its own in each process and thread, and the suffix of the file. What was written
    is on the disk before the names change. A block that fails leaves the file as it was, and no draft.

    Args:
        path: may not exist yet; its parents are made.
        is_durable: False for what can be made anew and is checked when it is read: a power cut may leave it
            cut off, and nothing waits for the disk.

    Yields:
        The draft, to be written by the block.

    Raises:
        OSError: if the disk refuses.

    Example:
        >>> with write_whole(Path("figures.json")) as draft:
        ...     draft.write_text("{}")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(_name_draft(path, f"{os.getpid()}-{threading.get_ident()}"))
    try:
        yield draft
        if is_durable:
            _flush(draft)
        os.replace(draft, path)
        if is_durable:
            _flush(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def remove_drafts(path: Path) -> None:
    """Remove the drafts of a file that kills left; only for who holds the sole right to write it."""
    for draft in path.parent.glob(_name_draft(path, "*")):
        draft.unlink(missing_ok=True)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """An empty draft beside a folder, which takes its place when the block ends well.

    On Linux there is no moment without the old or the new folder. Where the system cannot exchange two
    names, the old folder is renamed first, and the next call brings it back after a kill in between.
    A block that fails leaves the folder as it was, and no draft.

    Args:
        folder: may not exist yet; its parents are made.

    Yields:
        The draft.

    Raises:
        OSError: if the disk refuses.
    """
    draft, previous = (
        folder.with_name(f".{folder.name}.{word}") for word in ("partial", "previous")
    )
    _recover(folder, previous)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        for parent, _, files in os.walk(draft):
            for name in (*files, "."):
                _flush(Path(parent, name))
        if folder.exists() and not _exchange(draft, folder):
            folder.rename(previous)
        if not folder.exists():
            draft.rename(folder)
        _flush(folder.parent)
    finally:
        _recover(folder, previous)
        shutil.rmtree(draft, ignore_errors=True)


def _name_draft(path: Path, writer: str) -> str:
    return f".{path.stem}.{writer}.partial{path.suffix}"


def _flush(path: Path) -> None:
    """Have a file or folder written to the disk; links and systems that cannot are left out."""
    if path.is_symlink() or (path.is_dir() and sys.platform == "win32"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _recover(folder: Path, previous: Path) -> None:
    """Bring back what was renamed for a replacement that did not come, or forget it if it came."""
    if previous.exists() and not folder.exists():
        previous.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(first), os.fsencode(second)
    return bool(rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0)
