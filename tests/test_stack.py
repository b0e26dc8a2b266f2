"""The whole stack, up and down, on real servers."""

import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[1]


def call(checkout, *arguments):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MLFLOW_", "PREFECT_"))}
    env |= {"PYTHONPATH": str(checkout), "DO_NOT_TRACK": "true"}
    return subprocess.run(
        [sys.executable, "-m", "flows.stack", *arguments],
        cwd=checkout, env=env, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_stack_starts_runs_a_schedule_and_stops(tmp_path):
    """`up` brings servers, workers and schedules; a scheduled run really starts; `down` ends all."""
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "-q", ROOT, checkout], check=True)
    params = (checkout / "params.yaml").read_text()
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    params = params.replace("inbox:", f"inbox: {inbox} #", 1)
    (checkout / "params.yaml").write_text(params.replace("'*/15 * * * *'", "'* * * * *'"))
    try:
        started = call(checkout, "up")
        assert started.returncode == 0, started.stderr[-2000:]
        exports = dict(
            line.split("export ")[1].split("=", 1)
            for line in started.stdout.splitlines()
            if "export" in line
        )
        api = exports["PREFECT_API_URL"]
        assert httpx.get(f"{exports['MLFLOW_TRACKING_URI']}/health").is_success
        assert call(checkout, "status").returncode == 0

        finished = []
        deadline = time.monotonic() + 300
        while not finished and time.monotonic() < deadline:
            time.sleep(3)
            body = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
            runs = httpx.post(f"{api}/flow_runs/filter", json=body).json()
            finished = [run for run in runs if run["auto_scheduled"]]
        assert finished
    finally:
        stopped = call(checkout, "down")
    assert "prefect stopped" in stopped.stdout
    assert call(checkout, "status").returncode == 1
