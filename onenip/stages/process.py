"""The process of a stage: batch work at low CPU priority, which ends with the flow that started it."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

from onenip.data.dvc import FLOW_PROCESS

NICENESS = 10  # of batch work; servers keep 0

_LOOK_SECONDS = 1.0
_ATTEMPTS, _PAUSE_SECONDS = 20, 0.15
# Linux shares the processor between sessions first, by this value, and within one by niceness
_SESSION = Path("/proc/self/autogroup")

_SIGNAL_OF_PARENTS_END = 1  # PR_SET_PDEATHSIG of Linux, which alone groups tasks by session

log = logging.getLogger(__name__)


def lower_priority() -> None:
    """Lower the priority of this process and of all that it starts from now on; call it before threads start.

    Where the kernel groups tasks by session (autogroup), niceness counts within a session only. There the
    work goes on in a child that leads a session of its own, at low priority, and this process only waits
    for it: whatever kills either, the user's terminal keeps its speed. Threads wait without spinning:
    matrix products on all cores otherwise use the processor while they wait (`docs/benchmarks.md`).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported
    if hasattr(os, "setpriority"):  # Windows has none
        now = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, now))
    niceness = _read_session_niceness()
    if niceness is None or niceness >= NICENESS:
        return
    if os.getsid(0) != os.getpid():
        _go_on_in_own_session()
    set_session_niceness(os.getpid())


def begin_stage() -> None:
    """Lower the priority of this process; where a flow started it, through DVC, end it when the flow is gone.

    A flow that is cancelled or killed cannot stop what DVC started for it, so the stage looks itself.
    """
    lower_priority()
    number, _, started_at = os.environ.get(FLOW_PROCESS, "").partition(" ")
    if number:
        end_with(int(number), float(started_at))


def end_with(number: int, started_at: float | None = None) -> None:
    """From now on, end this process within a second or two of another's end.

    Args:
        number: of the other process.
        started_at: when it started, in seconds since 1970; None means the one that has the number now.
    """
    started_at = psutil.Process(number).create_time() if started_at is None else started_at
    threading.Thread(target=_wait_and_end, args=(number, started_at), daemon=True).start()


def set_session_niceness(number: int) -> None:
    """Give the session of a process the niceness of batch work, where the kernel groups tasks by session."""
    for _ in range(_ATTEMPTS):  # all ordinary users together may do it ten times a second
        try:
            Path(f"/proc/{number}/autogroup").write_text(str(NICENESS), encoding="ascii")
        except BlockingIOError:
            time.sleep(_PAUSE_SECONDS)
        except OSError as error:
            log.debug("session of process %d: %s", number, error)
            return
        else:
            return


def _go_on_in_own_session() -> None:
    """Return in a child that leads a session; here, hand signals on to it, and end as it does."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent, child = os.getpid(), os.fork()
    if not child:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        threading.Thread(target=_wait_and_end_session, daemon=True).start()
        # by the kernel, and so at once on the busiest machine
        ctypes.CDLL(None).prctl(_SIGNAL_OF_PARENTS_END, signal.SIGUSR2)
        if os.getppid() != parent:  # it was killed meanwhile
            os.kill(os.getpid(), signal.SIGUSR2)
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCONT):
        signal.signal(number, lambda given, _: os.killpg(child, given))

    def stop(*_: object) -> None:
        os.killpg(child, signal.SIGSTOP)
        os.kill(parent, signal.SIGSTOP)

    signal.signal(signal.SIGTSTP, stop)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGTERM)  # what a killed one leaves, such as Prefect's own server
    if code < 0:
        with suppress(OSError):  # of signals that nobody may handle
            signal.signal(-code, signal.SIG_DFL)
        os.kill(parent, -code)
    os._exit(code)


def _wait_and_end_session() -> None:
    """End this process and what it started, once the one that waits for it is gone."""
    signal.sigwait({signal.SIGUSR2})
    os.killpg(0, signal.SIGTERM)


def _read_session_niceness() -> int | None:
    """Niceness of this session; None where the kernel does not group tasks by session."""
    try:
        return int(_SESSION.read_text(encoding="ascii").split()[-1])
    except (OSError, ValueError, IndexError):
        return None


def _wait_and_end(number: int, started_at: float) -> None:
    while _is_running(number, started_at):
        time.sleep(_LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_running(number: int, started_at: float) -> bool:
    try:
        process = psutil.Process(number)
        is_same = abs(process.create_time() - started_at) < 1.0
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
