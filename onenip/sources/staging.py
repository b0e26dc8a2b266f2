"""The data set is replaced whole or not at all.

Everything is first laid out in a folder beside the data set, on the same file system; then two renames swap
them. A journal tells the next run, whatever killed this one, whether to undo the swap or to finish it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onenip.data.checkout import hold_checkout
from onenip.errors import ImageError, SourceError
from onenip.folders import remove_drafts, write_whole
from onenip.images import hash_file, load_mask
from onenip.sources.items import Item

_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "no permission to write or read",
    errno.EPERM: "no permission to write or read",
    errno.EROFS: "the file system is read-only",
    errno.EXDEV: "it is a mount point and cannot be swapped; mount a folder above it",
    errno.EBUSY: "it is a mount point and cannot be swapped; mount a folder above it",
    errno.ENAMETOOLONG: "the name is too long for this file system",
}


@dataclass(frozen=True)
class StagedFile:
    """A file of the new data set: sha256 of its bytes as 64 hex digits, size in bytes, origin's tag."""

    sha256: str
    bytes: int
    tag: str


class Staging:
    """Place beside a data set where its successor is put together.

    Args:
        data_dir: the data set, which need not exist.
        pointer: the file of DVC that names the data set's version.
    """

    def __init__(self, data_dir: Path, *, pointer: Path) -> None:
        self.data_dir = data_dir.resolve()
        self.folder = self.data_dir.parent / ".onenip" / "download" / self.data_dir.name
        self.downloads = self.folder / "downloads"
        self._tree = self.folder / "tree"
        self._previous = self.folder / "previous"
        self._journal = self.folder / "journal.json"
        self._pointer = pointer

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the checkout of the data set, and put right what a killed download left.

        Raises:
            BusyError: if another command is at work in it.
        """
        with ExitStack() as stack:
            with explain_disk_errors():
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold_checkout("download", root=self.data_dir.parent))
            self._recover()
            yield

    def stage(self, items: Sequence[Item]) -> dict[str, StagedFile]:
        """Lay out the new data set, from links where the bytes lie here already.

        Returns:
            By target, sorted.
        """
        shutil.rmtree(self._tree, ignore_errors=True)
        self._tree.mkdir(parents=True)
        return {item.target: self._stage(item) for item in sorted(items, key=lambda i: i.target)}

    def is_unchanged(self, staged: dict[str, StagedFile]) -> bool:
        """Whether the data set already is what was staged, byte for byte."""
        present = {
            path.relative_to(self.data_dir).as_posix(): path
            for path in self.data_dir.rglob("*")
            if not path.is_dir()
        }
        return present.keys() == staged.keys() and all(
            _is_same(present[target], self._tree / target) for target in staged
        )

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the staged data set in place; if the block fails, the old one comes back.

        The pointer belongs to it: whatever the block wrote there is undone as well.
        """
        before = self._pointer.read_text(encoding="utf-8") if self._pointer.is_file() else None
        had_data = self.data_dir.exists()
        self._write_journal({"pointer": before, "had_data": had_data})
        if had_data:
            self.data_dir.rename(self._previous)
        self._tree.rename(self.data_dir)
        try:
            yield
        except BaseException:
            self._recover()
            raise
        self._journal.unlink()
        self._forget_previous()

    def clear(self) -> None:
        """Remove what was fetched and staged."""
        shutil.rmtree(self.downloads, ignore_errors=True)
        shutil.rmtree(self._tree, ignore_errors=True)

    def _recover(self) -> None:
        """Undo a swap that was not finished: one whose journal is still there."""
        if self._journal.is_file():
            state = json.loads(self._journal.read_text(encoding="utf-8"))
            is_swapped = self._previous.exists() or not state["had_data"]
            if is_swapped and self.data_dir.exists():
                shutil.rmtree(self._tree, ignore_errors=True)
                self.data_dir.rename(self._tree)
            if self._previous.exists():
                self._previous.rename(self.data_dir)
            if state["pointer"] is None:
                self._pointer.unlink(missing_ok=True)
            else:
                with write_whole(self._pointer) as draft:
                    draft.write_text(state["pointer"], encoding="utf-8")
            self._journal.unlink()
        for path in (self._journal, self._pointer):
            remove_drafts(path)
        self._forget_previous()

    def _forget_previous(self) -> None:
        shutil.rmtree(self._previous, ignore_errors=True)

    def _write_journal(self, state: dict[str, str | bool | None]) -> None:
        with write_whole(self._journal) as draft:
            draft.write_text(json.dumps(state), encoding="utf-8")

    def _stage(self, item: Item) -> StagedFile:
        staged = self._tree / item.target
        staged.parent.mkdir(parents=True, exist_ok=True)
        present = self.data_dir / item.target
        if item.draw is not None:
            _write_mask(item.draw(item.file), staged)
        elif item.is_mask:
            _rewrite_mask((item.file, *item.more), staged)
        elif present.is_file() and _is_same(present, item.file):
            _link(present, staged)
        elif item.file.is_relative_to(self.folder):
            _link(item.file, staged)
        else:
            shutil.copyfile(item.file, staged)
        return StagedFile(hash_file(staged), staged.stat().st_size, item.tag)


@contextmanager
def explain_disk_errors() -> Iterator[None]:
    """Turn an error of the file system that the user can mend into one line.

    Raises:
        SourceError: naming the file and what is wrong.
    """
    try:
        yield
    except OSError as error:
        reason = _DISK_ERRORS.get(error.errno or 0)
        if reason is None:
            raise
        raise SourceError(
            f"{error.filename or 'download'}: {reason}; nothing was changed"
        ) from error


def _link(source: Path, target: Path) -> None:
    if source.is_symlink():  # as DVC may lay out its cache
        shutil.copyfile(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _is_same(first: Path, second: Path) -> bool:
    if first.stat().st_size != second.stat().st_size:
        return False
    return first.samefile(second) or hash_file(first) == hash_file(second)


def _rewrite_mask(sources: Sequence[Path], target: Path) -> None:
    """Write united masks as PNG with 0 and 255; one that cannot be read is copied, to be reported."""
    masks = []
    for source in sources:
        try:
            masks.append(load_mask(source))
        except ImageError:
            shutil.copyfile(source, target)
            return
    if len({mask.shape for mask in masks}) > 1:
        raise SourceError(f"{sources[0].parent}: the masks of one image differ in size")
    _write_mask(np.logical_or.reduce(masks), target)


def _write_mask(mask: NDArray[np.bool_], target: Path) -> None:
    Image.fromarray(mask.astype(np.uint8) * 255).save(target, format="PNG")
