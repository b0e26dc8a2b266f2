"""One lock for all that writes to a checkout, between real processes."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

import pytest

from onenip.data.checkout import HOLDER, hold_checkout
from onenip.errors import BusyError
from tests.holding import held_elsewhere


def test_who_comes_second_is_told_who_is_at_work(tmp_path):
    """One sentence names the command and its process; afterwards the checkout is free."""
    with (
        held_elsewhere(tmp_path, "retrain") as other,
        pytest.raises(BusyError) as caught,
        hold_checkout("ingest", root=tmp_path),
    ):
        pass

    assert str(caught.value) == (
        f"retrain (process {other.pid}) is at work in this checkout; try again when it is done"
    )
    with hold_checkout("ingest", root=tmp_path), hold_checkout("provide", root=tmp_path):
        assert (tmp_path / HOLDER).is_file()
    assert not (tmp_path / HOLDER).exists()


def test_who_waits_says_so_and_goes_on(tmp_path, caplog):
    """A retraining that meets a pipeline logs a line and begins when the pipeline has ended."""
    caplog.set_level(logging.INFO, logger="onenip")
    begun = threading.Event()

    def wait() -> None:
        with hold_checkout("retrain", root=tmp_path, wait=True):
            begun.set()

    waiting = threading.Thread(target=wait)
    with held_elsewhere(tmp_path) as other:
        waiting.start()
        while not caplog.records:
            waiting.join(0.05)
        assert not begun.is_set()
    waiting.join()

    assert begun.is_set()
    assert caplog.messages == [f"retrain: waiting until pipeline (process {other.pid}) is done"]


def test_a_killed_holder_holds_nothing(tmp_path):
    """The lock ends with the process, however that ends."""
    with held_elsewhere(tmp_path) as other:
        other.kill()
        other.wait()
        with hold_checkout("ingest", root=tmp_path):
            pass


def test_a_dvc_that_a_person_started_is_at_work_too(tmp_path):
    """While `dvc repro` runs a stage by hand, nothing of ours begins to write."""
    (tmp_path / "data").write_text("in")
    (tmp_path / "dvc.yaml").write_text(
        "stages: {slow: {cmd: 'echo begun; read line', deps: [data], outs: [out]}}"
    )
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    with subprocess.Popen(
        [*dvc, "repro"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            while process.stdout.readline() != "begun\n":
                assert process.poll() is None
            with (
                pytest.raises(BusyError, match=rf"dvc \(process {process.pid}\) is at work"),
                hold_checkout("ingest", root=tmp_path),
            ):
                pass
        finally:
            process.stdin.close()
    with hold_checkout("ingest", root=tmp_path):
        pass
