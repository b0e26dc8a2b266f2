"""The process of a stage: batch work at low CPU priority, which ends with the flow that started it."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
import time
from pathlib import Path

import psutil

from onenip.data.dvc import FLOW_PROCESS

NICENESS = 10  # of batch work; servers keep 0

_LOOK_SECONDS = 1.0
# Linux shares the processor between sessions first, by this value, and within one by niceness
_SESSION = Path("/proc/self/autogroup")

log = logging.getLogger(__name__)


def lower_priority() -> None:
    """Lower the priority of this process and of all that it starts from now on; call it before threads start.

    On Linux the priority of its session is lowered, too, until this process ends: where the kernel groups
    tasks by session (autogroup), niceness counts within a session only. Threads wait without spinning:
    matrix products on all cores otherwise use the processor while they wait (`docs/benchmarks.md`).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported
    if hasattr(os, "setpriority"):  # Windows has none
        now = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, now))
    before = _read_session_niceness()
    if before is not None and before < NICENESS and _set_session_niceness(NICENESS):
        atexit.register(_set_session_niceness, max(before, 0))


def begin_stage() -> None:
    """Lower the priority of this process; where a flow started it, through DVC, end it when the flow is gone.

    A flow that is cancelled or killed cannot stop what DVC started for it, so the stage looks itself.
    """
    niceness = _read_session_niceness()
    lower_priority()
    number, _, started_at = os.environ.get(FLOW_PROCESS, "").partition(" ")
    if number:
        look = threading.Thread(
            target=_end_with, args=(int(number), float(started_at), niceness), daemon=True
        )
        look.start()


def _read_session_niceness() -> int | None:
    """Niceness of this session; None where the kernel does not group tasks by session."""
    try:
        return int(_SESSION.read_text(encoding="ascii").split()[-1])
    except (OSError, ValueError, IndexError):
        return None


def _set_session_niceness(niceness: int) -> bool:
    """True if the kernel took it."""
    try:
        _SESSION.write_text(str(niceness), encoding="ascii")
    except OSError as error:  # an ordinary user may change it ten times a second
        log.debug("%s: %s", _SESSION, error)
        return False
    return True


def _end_with(number: int, started_at: float, session_niceness: int | None) -> None:
    while _is_running(number, started_at):
        time.sleep(_LOOK_SECONDS)
    if session_niceness is not None:  # nothing runs at the exit of what a signal ends
        _set_session_niceness(max(session_niceness, 0))
    os.kill(os.getpid(), signal.SIGTERM)


def _is_running(number: int, started_at: float) -> bool:
    try:
        process = psutil.Process(number)
        is_same = abs(process.create_time() - started_at) < 1.0
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
