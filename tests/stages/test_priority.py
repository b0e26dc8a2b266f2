"""Low priority of batch work."""

import subprocess
import sys

import pytest

CHILD = "import os, sys; print(os.getpriority(os.PRIO_PROCESS, 0))"


@pytest.mark.parametrize(("before", "after"), [(0, 10), (5, 10), (15, 15)])
def test_a_process_and_its_children_get_low_priority(before, after):
    """Niceness goes up to 10, and never down."""
    code = (
        "import os, subprocess, sys\n"
        "from onenip.stages.priority import lower_priority\n"
        f"os.setpriority(os.PRIO_PROCESS, 0, {before})\n"
        "lower_priority()\n"
        f"subprocess.run([sys.executable, '-c', {CHILD!r}], check=True)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert int(done.stdout) == after
