"""How the C library hands memory out, which costs a training on a CPU up to a tenth of its time."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt
_NEVER = 2**31 - 1  # bytes


def keep_freed_memory() -> None:
    """Have this process keep what it frees for its next allocations, where the C library is glibc.

    A training step allocates and frees the same hundreds of megabytes each time. By default glibc gives
    large blocks back to the kernel, which fills them with zeros anew, page by page, when they are asked for
    again. The process grows no larger than it was at its largest.

    Source: mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _NEVER)
        mallopt(_TRIM_THRESHOLD, _NEVER)
