"""Work that can wait gives way to what answers."""

import subprocess
import sys

import pytest

CHILD = "import os, sys; print(os.getpriority(os.PRIO_PROCESS, 0))"


@pytest.mark.parametrize(("before", "after"), [(0, 10), (5, 10), (15, 15)])
def test_what_gives_way_lowers_itself_and_its_children(before, after):
    """Down to its level, and never up."""
    code = (
        "import os, subprocess, sys\n"
        "from onenip.priority import lower_priority\n"
        f"os.setpriority(os.PRIO_PROCESS, 0, {before})\n"
        "lower_priority()\n"
        f"subprocess.run([sys.executable, '-c', {CHILD!r}], check=True)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert int(done.stdout) == after
