"""People who decide at once, too late, or past us, on a real MLflow server; two pipelines in one checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime

import httpx
import pytest

from onenip.registry import approval, audit, versions
from onenip.registry.champions import load_champion
from onenip.registry.decisions import Step
from onenip.registry.publishing import publish
from onenip.registry.tags import ThresholdChange, Version, registered_name
from onenip.registry.versions import CHAMPION
from tests.acceptance.plant import mlflow_server
from tests.holding import held_elsewhere
from tests.paths import ROOT
from tests.tiny import write_figures

QUIET = {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of an MLflow server."""
    folder = tmp_path_factory.mktemp("mlflow")
    with mlflow_server(folder, {**os.environ, **QUIET}, artifacts=str(folder / "store")) as address:
        yield address


@pytest.fixture
def registry(server, tmp_path, tiny_detector, tiny_data, monkeypatch):
    """Gives a function that registers the tiny model, each time as another version."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.chdir(tmp_path)

    def register():
        image = next((tiny_data / "disc/train/good").iterdir())
        unique = f"c{os.urandom(3).hex()}"  # a category of this test's own, on the shared server
        tiny_detector.add_category(unique, [image]).save(tmp_path / unique)
        evaluation = write_figures(tmp_path / "evaluation", tmp_path / unique)
        publish(tmp_path / unique, evaluation_dir=evaluation, params={}, facts={})
        return versions.challenger("disc").number

    return register


def start(*arguments):
    """A process of the command line."""
    command = [sys.executable, "-m", "onenip", *arguments]
    return subprocess.Popen(
        command,
        env={**os.environ, **QUIET},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_of_two_people_who_approve_at_once_one_wins_and_the_other_is_told(registry):
    """Two processes, one decision: the loser reads who won, and the trail has one approval."""
    number = registry()
    people = ("Ada", "Grace")
    running = [start("approve", "disc", "--by", who, "--reason", "good") for who in people]

    said = [process.communicate(timeout=200) for process in running]

    codes = [process.returncode for process in running]
    assert sorted(codes) == [0, 2]
    winner, loser = people[codes.index(0)], codes.index(2)
    assert versions.champion("disc").approver == winner
    assert said[loser][1].startswith("onenip: ")
    assert winner in said[loser][1]
    approvals = [
        e for e in audit.read_trail("disc") if (e.action, e.version) == ("approve", number)
    ]
    assert len(approvals) == 1


@pytest.mark.slow
def test_whoever_looked_at_a_version_that_was_replaced_is_told(registry):
    """An approval that names the version it is about never lands on a newer one."""
    seen = registry()
    newer = registry()

    process = start("approve", "disc", "--version", str(seen), "--by", "Ada", "--reason", "good")
    error = process.communicate(timeout=200)[1]

    assert process.returncode == 2
    assert f"version {seen} was replaced by version {newer}" in error
    assert versions.challenger("disc").number == newer


@pytest.mark.slow
def test_an_alias_set_in_mlflows_own_page_is_recorded(registry, server):
    """The page's own request moves the alias; `onenip status` says so, and the model is pinned."""
    number = registry()
    name = registered_name("disc")
    body = {"name": name, "alias": "champion", "version": str(number)}
    address = f"{server}/api/2.0/mlflow/registered-models/alias"
    httpx.post(address, json=body).raise_for_status()

    out = start("status").communicate(timeout=200)[0]

    assert f"Recorded: disc version {number}" in out
    last = audit.read_trail("disc")[-1]
    assert (last.action, last.by, last.champion) == ("by-hand", "unknown", number)
    assert load_champion("disc")[1].number == number
    assert audit.find_breaks(audit.read_trail("disc")) == []


@pytest.mark.slow
def test_a_second_pipeline_in_a_checkout_is_told(tmp_path):
    """While one is at work the other ends with one line and touches nothing."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    for name in ("flows", "onenip"):
        (tmp_path / name).symlink_to(ROOT / name)
    env = {**os.environ, **QUIET, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "flows.pipeline", "--source", "demo"]
    with held_elsewhere(tmp_path):
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )

    assert done.returncode == 2
    assert "is at work in this checkout" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "data").exists()


def test_the_longest_intent_fits_into_a_tag():
    """A PostgreSQL registry keeps 5,000 characters of a registered model's tag."""
    now = datetime.now(tz=UTC)
    change = ThresholdChange(value=-0.12345678901234567, at=now)
    version = Version(
        category="disc",
        number=100_000,
        digest="0" * 64,
        weights_uri="models:/m-0",
        approval="approved",
        metrics={},
        created_at=now,
        thresholds=(change,) * 100,
    )
    said = {"by": '"' * approval.MAX_BY, "reason": '"' * approval.MAX_REASON}
    decided = approval._decision(version, "approved", **said)
    steps = [decided, Step(alias=CHAMPION, version=version.number)]

    for intent in (
        approval._change(version, "threshold", version.thresholds, **said),
        approval._intend(version, "approve", steps=steps, **said),
    ):
        assert len(intent.model_dump_json()) < 5000
