"""Batch work has low priority, and ends with whoever asked for it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.paths import ROOT

CHILD = "import os, sys; print(os.getpriority(os.PRIO_PROCESS, 0))"


@pytest.mark.parametrize(("before", "after"), [(0, 10), (5, 10), (15, 15)])
def test_a_process_and_its_children_get_low_priority(before, after):
    """Niceness goes up to 10, and never down."""
    code = (
        "import os, subprocess, sys\n"
        "from onenip.stages.process import lower_priority\n"
        f"os.setpriority(os.PRIO_PROCESS, 0, {before})\n"
        "lower_priority()\n"
        f"subprocess.run([sys.executable, '-c', {CHILD!r}], check=True)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert int(done.stdout) == after


SESSION = Path("/proc/self/autogroup")
LOWERED = """
import os
from onenip.stages.process import lower_priority
lower_priority()
print(open("/proc/self/autogroup").read().split()[-1], os.environ["OMP_WAIT_POLICY"])
"""
# leads a session, as a worker of `make up` or a shell does
LEADER = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {LOWERED!r}], check=True)
print(open("/proc/self/autogroup").read().split()[-1])
"""


@pytest.mark.skipif(not SESSION.is_file(), reason="this kernel does not group by session")
def test_the_session_has_low_priority_as_long_as_the_process_lives():
    """Between sessions the kernel goes by the session's own value, which the shell gets back."""
    done = subprocess.run(
        [sys.executable, "-c", LEADER],
        capture_output=True,
        text=True,
        check=True,
        start_new_session=True,
    )

    assert done.stdout.split() == ["10", "passive", "0"]


STAGE = """
import pathlib, os, time
from onenip.stages.process import begin_stage
begin_stage()
pathlib.Path("number").write_text(str(os.getpid()))
time.sleep(600)
"""
FLOW = """
from pathlib import Path
from onenip.data import dvc
dvc.repro("wait", root=Path(), on_line=print)
"""


def test_a_stage_ends_with_the_flow_that_asked_for_it(tmp_path):
    """Neither the stage nor DVC goes on once the flow's process is killed."""
    (tmp_path / "stage.py").write_text(STAGE)
    command = f"{sys.executable} stage.py"
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": {"wait": {"cmd": command}}}))
    subprocess.run(
        [sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=tmp_path, check=True
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    flow = subprocess.Popen([sys.executable, "-c", FLOW], cwd=tmp_path, env=env)
    number = tmp_path / "number"
    while not (number.is_file() and number.read_text()):
        assert flow.poll() is None
        time.sleep(0.1)
    family = psutil.Process(flow.pid).children(recursive=True)
    assert int(number.read_text()) in [one.pid for one in family]

    flow.kill()
    flow.wait(60)

    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
