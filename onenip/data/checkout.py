"""One lock for all that writes to a checkout: download, ingestion, pipeline, retraining."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from onenip.data import dvc
from onenip.data.git import HERE
from onenip.errors import BusyError
from onenip.folders import write_whole

STATE_DIR = Path(".onenip")
LOCK = STATE_DIR / "checkout.lock"
HOLDER = STATE_DIR / "checkout.json"

_POLL_SECONDS = 0.5

log = logging.getLogger(__name__)


@contextmanager
def hold_checkout(what: str, *, root: Path = HERE, wait: bool = False) -> Iterator[None]:
    """Keep every other command that writes to a checkout out of it, a `dvc` started by hand included.

    A process that holds the checkout may hold it again, as ingestion does inside of a retraining. The lock
    ends with the process, however that ends.

    Args:
        what: the command, as those who wait shall see it.
        root: the checkout.
        wait: wait for a command that is at work; False refuses.

    Raises:
        BusyError: if another command is at work and `wait` is False.
        OSError: if the lock cannot be written.
    """
    path = root.resolve() / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, is_singleton=True, thread_local=False)
    is_mine = lock.is_locked
    if is_mine:
        lock.acquire()
    else:
        _take(lock, what, root, wait=wait)
    try:
        yield
    finally:
        if not is_mine:
            (root / HOLDER).unlink(missing_ok=True)
        lock.release()


def _take(lock: BaseFileLock, what: str, root: Path, *, wait: bool) -> None:
    """Acquire the lock while no DVC is at work either, and note who has it."""
    has_said = False
    while True:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            holder = _read_holder(root)
        else:
            holder = dvc.find_user(root)
            if not holder:
                break
            lock.release()
        if not wait:
            raise BusyError(f"{holder} is at work in this checkout; try again when it is done")
        if not has_said:
            log.info("%s: waiting until %s is done", what, holder)
            has_said = True
        time.sleep(_POLL_SECONDS)
    try:
        with write_whole(root / HOLDER) as draft:
            draft.write_text(json.dumps({"what": what, "process": os.getpid()}), encoding="utf-8")
    except BaseException:
        lock.release()
        raise


def _read_holder(root: Path) -> str:
    try:
        holder = json.loads((root / HOLDER).read_text(encoding="utf-8"))
        return f"{holder['what']} (process {holder['process']})"
    except (OSError, ValueError, LookupError, TypeError):  # it has just begun, or just ended
        return "another command"
