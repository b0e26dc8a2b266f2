"""Output folders that change whole or not at all, wherever a kill lands."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from pathlib import Path

_AT_FDCWD = -100
_EXCHANGE = 2  # Linux: both names change in one step


def replace_folder(folder: Path, draft: Path) -> None:
    """Put a finished draft in a folder's place; on Linux there is no moment without one of the two.

    Where the system cannot exchange two names, the old folder is renamed first, and
    `recover_folder` brings it back after a kill in between.

    Args:
        folder: may not exist yet.
        draft: on the same file system; gone afterwards.

    Raises:
        OSError: if a rename is refused; then the folder is as it was.
    """
    recover_folder(folder)
    if not folder.exists():
        draft.rename(folder)
    elif _exchange(draft, folder):
        shutil.rmtree(draft, ignore_errors=True)
    else:
        previous = _previous(folder)
        folder.rename(previous)
        try:
            draft.rename(folder)
        except BaseException:
            recover_folder(folder)
            raise
        shutil.rmtree(previous, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Bring back what a replacement that was killed had moved aside, or forget it if that was done."""
    previous = _previous(folder)
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


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.previous")
