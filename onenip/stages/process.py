"""The process of a stage: batch work at low CPU priority, which ends with the flow that started it."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil

from onenip.data.dvc import FLOW_PROCESS

NICENESS = 10  # of batch work; servers keep 0

_LOOK_SECONDS = 1.0


def lower_priority() -> None:
    """Lower the priority of this process and of all that it starts from now on; call it before threads start.

    Matrix products on all cores spin while they wait for each other: beside a training of equal priority a
    server answers many times slower (`docs/benchmarks.md`).
    """
    now = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, now))


def begin_stage() -> None:
    """Lower the priority of this process; where a flow started it, through DVC, end it when the flow is gone.

    A flow that is cancelled or killed cannot stop what DVC started for it, so the stage looks itself.
    """
    lower_priority()
    number, _, started_at = os.environ.get(FLOW_PROCESS, "").partition(" ")
    if number:
        look = threading.Thread(
            target=_end_with, args=(int(number), float(started_at)), daemon=True
        )
        look.start()


def _end_with(number: int, started_at: float) -> None:
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
