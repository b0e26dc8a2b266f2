"""Low CPU priority for batch work, so that a server on the same machine keeps its latency."""

from __future__ import annotations

import os

NICENESS = 10  # of batch work; servers keep 0


def lower_priority() -> None:
    """Lower the priority of this process and of all that it starts from now on; call it before threads start.

    Matrix products on all cores spin while they wait for each other: beside a training of equal priority a
    server answers many times slower (`docs/benchmarks.md`).
    """
    now = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, now))
