"""Batch work has low priority, and ends with whoever asked for it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.paths import ROOT

CHILD = "import os, sys; print(os.getpriority(os.PRIO_PROCESS, 0))"


@pytest.mark.parametrize(
    ("command", "before", "after"), [("train", 0, 10), ("evaluate", 15, 15), ("predict", 0, 0)]
)
def test_batch_commands_and_their_children_get_low_priority(command, before, after):
    """Niceness goes up to 10, and never down; what people wait for keeps its own."""
    code = (
        "import atexit, os, subprocess, sys\n"
        "from onenip.cli import main\n"
        f"os.setpriority(os.PRIO_PROCESS, 0, {before})\n"
        f"atexit.register(subprocess.run, [sys.executable, '-c', {CHILD!r}], check=True)\n"
        f"sys.argv = ['onenip', {command!r}, '--help']\n"
        "main()\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert int(done.stdout.splitlines()[-1]) == after


SESSION = Path("/proc/self/autogroup")
# empty where no terminal or service manager began this session: it belongs to no group
groups_sessions = pytest.mark.skipif(
    not (SESSION.is_file() and SESSION.read_text()), reason="this session is in no group of its own"
)
BATCH = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
from onenip.stages.process import lower_priority
lower_priority()
print(os.getpid(), open("/proc/self/autogroup").read().split()[-1], os.environ["OMP_WAIT_POLICY"], flush=True)
{then}
"""


def start_batch(then, **options):
    """Batch work in a process of this terminal: that process, then number and niceness of who works."""
    process = subprocess.Popen(
        [sys.executable, "-c", BATCH.format(then=then)],
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
    number, niceness, policy = process.stdout.readline().split()
    assert policy == "passive"
    return process, psutil.Process(int(number)), int(niceness)


@groups_sessions
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_batch_work_is_slow_and_the_terminal_never(name):
    """The work leads a session of low priority; whatever ends it, the terminal's is as it was."""
    before = SESSION.read_text()
    process, worker, niceness = start_batch("time.sleep(600)")

    during = SESSION.read_text()
    process.send_signal(getattr(signal, name))

    assert niceness == 10
    assert process.wait(60) == -getattr(signal, name)
    worker.wait(60)
    assert before == during == SESSION.read_text()


@groups_sessions
def test_batch_work_ends_as_its_own_process_does():
    """The exit status is that of the work, also of work that was killed."""
    failed, _, _ = start_batch("sys.exit(3)")
    killed, worker, _ = start_batch("time.sleep(600)")
    worker.kill()

    assert failed.wait(60) == 3
    assert killed.wait(60) == -signal.SIGKILL


@groups_sessions
@pytest.mark.parametrize("is_waiting_one", [True, False])
def test_what_batch_work_started_ends_with_it(is_waiting_one):
    """Whichever of its two processes is killed, no server that it started for itself goes on."""
    then = "import subprocess; subprocess.Popen(['sleep', '600'], stdout=2); time.sleep(600)"
    process, worker, _ = start_batch(then)
    wait_for(worker.children)
    started = worker.children()[0]

    (process if is_waiting_one else worker).kill()

    process.wait(60)
    psutil.wait_procs([worker, started], timeout=60)
    assert not started.is_running()


@groups_sessions
def test_batch_work_stops_and_goes_on_with_its_terminal():
    """Ctrl-Z and `fg` reach it, too."""
    process, worker, _ = start_batch("time.sleep(600)")

    process.send_signal(signal.SIGTSTP)
    wait_for(lambda: worker.status() == psutil.STATUS_STOPPED)
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: worker.status() != psutil.STATUS_STOPPED)

    process.kill()
    worker.wait(60)


@groups_sessions
def test_a_session_of_its_own_is_lowered_itself():
    """Where the work leads a session already, as under systemd, there is no second process."""
    process, worker, niceness = start_batch("time.sleep(600)", start_new_session=True)

    assert (worker.pid, niceness) == (process.pid, 10)
    process.kill()
    process.wait(60)


def wait_for(check):
    """Until it is so; the test's own limit ends it."""
    while not check():
        time.sleep(0.05)


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
