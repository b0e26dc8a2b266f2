"""A checkout that another, real process holds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HOLD = """
import sys
from pathlib import Path
from onenip.data.checkout import hold_checkout
with hold_checkout(sys.argv[2], root=Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(root: Path, what: str = "pipeline") -> Iterator[subprocess.Popen[str]]:
    """Have another process hold a checkout for as long as the block takes, or until it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(root), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.stdin.close()
