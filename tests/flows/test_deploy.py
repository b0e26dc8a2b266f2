"""What starts by itself, on a real Prefect server: events start flows, and none piles up."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import httpx
import pytest

from onenip.operation.notices import ARRIVED_EVENT, DRIFT_EVENT, emit
from onenip.params.presets import render
from onenip.registry import approval
from onenip.registry.publishing import publish
from tests.acceptance.plant import prefect_server
from tests.paths import ROOT
from tests.tiny import CATEGORIES, make_tiny_params, write_figures


@pytest.fixture(scope="module")
def environment():
    """Of processes that this module starts."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_"))}
    return kept | {"DO_NOT_TRACK": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


@pytest.fixture(scope="module")
def server(tmp_path_factory, environment):
    """Address of a Prefect server."""
    with prefect_server(tmp_path_factory.mktemp("server"), environment) as address:
        yield address


@pytest.fixture(scope="module")
def plant(tmp_path_factory, server, environment):
    """Gives a function that runs Python in a checkout with deployments on the server, and no worker."""
    folder = tmp_path_factory.mktemp("plant")
    for name in ("flows", "onenip"):
        (folder / name).symlink_to(ROOT / name)

    def run(*arguments, drift_retrains=False, tracking=None):
        params = make_tiny_params(drift={"retrain": drift_retrains})
        (folder / "params.yaml").write_text(render(params))
        own = environment | {"PREFECT_API_URL": server, "PYTHONPATH": str(folder)}
        if tracking:
            own |= {"MLFLOW_TRACKING_URI": tracking}
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, cwd=folder, env=own, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    run("-m", "flows.deploy")
    return run


def list_runs(server, name):
    """Runs of a deployment that its schedule did not make."""
    body = {"deployments": {"name": {"any_": [name]}}}
    runs = httpx.post(f"{server}/flow_runs/filter", json=body).raise_for_status().json()
    return [run for run in runs if run["created_by"] and run["created_by"]["type"] != "SCHEDULE"]


def wait_for_runs(server, name, count, seconds=90.0):
    """The runs, once there are so many."""
    deadline = time.monotonic() + seconds
    while len(found := list_runs(server, name)) < count and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_events_start_what_they_should(server, plant, monkeypatch):
    """An announcement starts `watch`; drift starts one retraining if params ask for it, whatever drifts."""
    monkeypatch.setenv("PREFECT_API_URL", server)
    emit(DRIFT_EVENT, "bottle", payload={})
    emit(ARRIVED_EVENT, "bottle", payload={})
    assert len(wait_for_runs(server, "watch", 1)) == 1
    assert list_runs(server, "retrain") == []  # drift.retrain is off

    plant("-m", "flows.deploy", drift_retrains=True)
    deadline = time.monotonic() + 90  # the server takes a while to follow a changed automation
    while not list_runs(server, "retrain") and time.monotonic() < deadline:
        emit(DRIFT_EVENT, "bottle", payload={})
        emit(DRIFT_EVENT, "screw", payload={})
        time.sleep(2)
    time.sleep(3)

    (run,) = list_runs(server, "retrain")
    assert run["parameters"] == {"force": True}


_START = "from flows.watch import start_retraining as s; print(s(force={}).message)"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_starts_do_not_pile_up(server, plant):
    """While one retraining waits for its turn, the schedule adds none."""
    before = len(list_runs(server, "retrain"))

    first = plant("-c", _START.format(True))
    second = plant("-c", _START.format(False))

    assert "waits for its turn already" in second
    assert len(list_runs(server, "retrain")) <= before + 1
    assert first.strip()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_forms_of_decided_versions_are_closed(server, plant, tmp_path, tiny_model, monkeypatch):
    """A form is cancelled, with the reason, once its version was decided elsewhere; others stay."""
    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    publish(
        tiny_model,
        evaluation_dir=write_figures(tmp_path / "evaluation", tiny_model),
        params={},
        facts={},
    )
    forms = {name: suspend_form(server, name) for name in CATEGORIES}
    flow = httpx.get(f"{server}/flows/name/approve").raise_for_status().json()["id"]
    odd = [
        httpx.post(
            f"{server}/flow_runs/",
            json={"flow_id": flow, "parameters": made_up, "state": {"type": "PAUSED"}},
        ).raise_for_status().json()["id"]
        for made_up in ({}, {"category": ["disc"], "number": "x"}, {"category": 'a" OR "', "number": 1})
    ]  # fmt: skip
    approval.approve("disc", by="Ada", reason="good")

    plant("-m", "flows.watch", tracking=store)

    states = {
        name: httpx.get(f"{server}/flow_runs/{run}").raise_for_status().json()["state"]
        for name, run in [*forms.items(), *zip(range(len(odd)), odd, strict=True)]
    }
    assert {states[at]["type"] for at in range(len(odd))} == {"CANCELLED"}
    assert states["disc"]["type"] == "CANCELLED"
    assert states["disc"]["message"] == "disc version 1 is approved by Ada already"
    assert states["stripes"]["type"] == "PAUSED"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("plant")
@pytest.mark.parametrize(
    "parameters",
    [{}, {"category": "", "number": 1}, {"category": "a" * 300, "number": 1},
     {"category": "a\0b", "number": 1},
     {"category": "disc", "number": 10**30}, {"category": "disc", "number": -1}],
)  # fmt: skip
def test_odd_parameters_start_no_form(server, parameters):
    """Such as a number that no JSON of the server can hold: it would break every list of runs."""
    found = httpx.get(f"{server}/deployments/name/approve/approve").raise_for_status().json()
    body = {"parameters": parameters}
    answer = httpx.post(f"{server}/deployments/{found['id']}/create_flow_run", json=body)

    assert answer.status_code == 409
    assert list_runs(server, "approve") is not None


def suspend_form(server, category):
    """Id of a run that waits for a person to decide about version 1 of a category."""
    found = httpx.get(f"{server}/deployments/name/approve/approve").raise_for_status().json()
    body = {
        "parameters": {"category": category, "number": 1},
        "state": {"type": "PAUSED", "name": "Suspended"},
    }
    address = f"{server}/deployments/{found['id']}/create_flow_run"
    return httpx.post(address, json=body).raise_for_status().json()["id"]
