"""The flow of the whole chain, run as a user runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.states import Failed

from flows.failures import UNREACHABLE, may_pass
from flows.pipeline import Download, run_pipeline
from onenip.addresses import holds_secret
from onenip.errors import RegistryUnreachableError, SourceError
from tests.holding import held_elsewhere
from tests.paths import ROOT


def test_only_what_may_pass_gets_another_attempt() -> None:
    """A server that is down is worth another attempt, a user's mistake is not."""
    assert may_pass(None, None, Failed(message="down", name=UNREACHABLE))
    assert may_pass(None, None, Failed(data=RegistryUnreachableError("down")))
    assert not may_pass(None, None, Failed(message="no such folder"))
    assert not may_pass(None, None, Failed(data=SourceError("no such folder")))


@pytest.mark.slow
def test_a_missing_source_is_one_line_at_once(tmp_path: Path) -> None:
    """A source that does not exist ends the flow with one line, without attempts or a traceback."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path / "prefect")}
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "flows.pipeline", "--source", "no/such/folder"]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    lines = result.stderr.splitlines()
    assert result.returncode == 2
    assert any(line.startswith("onenip: download: no/such/folder: no such") for line in lines)
    assert "Traceback" not in result.stderr
    assert "Retry" not in result.stderr


def test_prefect_gets_no_password_of_a_source() -> None:
    """An address with one is refused before a flow run keeps it; names of variables may pass."""
    for address in (
        "https://ada:word@host/a.zip",
        "https://host/a.zip?X-Amz-Signature=1",
        "http://[x",
    ):
        with pytest.raises(SourceError, match="write \\$") as caught:
            run_pipeline(Download((address,)))
        assert "S3CRET" not in str(caught.value)
    with pytest.raises(SourceError, match="which Prefect would keep"):
        run_pipeline(Download(("demo",), endpoint_url="http://ada:word@host"))
    named = ("https://${LOGIN}@host/a.zip?sig=${SIG}", "https://${A}:${B}@h/a.zip?${Q}", "../${A}")
    assert not any(map(holds_secret, named))


@pytest.mark.slow
def test_a_retraining_waits_for_a_pipeline(tmp_path: Path) -> None:
    """It says whom it waits for, begins when that has ended, and fails for nobody."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path / "prefect")}
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "flows.retrain"]
    lines = []
    with held_elsewhere(tmp_path) as other:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while not any("waiting until" in line for line in lines):
            lines.append(process.stdout.readline())
            assert lines[-1], "".join(lines)
    rest = process.stdout.read()

    assert process.wait() == 0, rest
    assert f"retrain: waiting until pipeline (process {other.pid}) is done" in lines[-1]
    assert "too little is new to train" in rest
