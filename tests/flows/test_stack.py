"""The whole stack, up and down, on real servers."""

import json
import os
import shlex
import subprocess
import sys
import time
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
from playwright.sync_api import sync_playwright

from tests.pages.conftest import CHROMIUM, FLAGS
from tests.paths import ROOT
from tests.postgres import running_postgres
from tests.receiver import receiving
from tests.tiny import write_figures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

ADDRESSES = ("PREFECT_API_URL", "MLFLOW_TRACKING_URI")
WAITING_STAGE = """
import os, pathlib, time
from onenip.stages.process import begin_stage
begin_stage()
pathlib.Path("number").write_text(str(os.getpid()))
time.sleep(1200)
"""
WAITING_FLOW = """
from prefect import flow
from onenip.data import dvc

@flow(name="waiting")
def waiting():
    dvc.repro("waiting", on_line=print)
"""
DEPLOY_WAITING = """
from pathlib import Path
import flows
from prefect import deploy
from flows.deploy import LIGHT_POOL, _declare
deploy(
    _declare("waiting", Path().resolve()), work_pool_name=LIGHT_POOL, build=False, push=False,
    print_next_steps_message=False, ignore_warnings=True,
)
"""
REGISTER = """
from pathlib import Path
from onenip.registry.publishing import publish
publish(Path({model!r}), evaluation_dir=Path({evaluation!r}), params={{}}, facts={{}})
"""


def call(checkout, *arguments, module="flows.stack", env=None):
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("AWS_", "MLFLOW_", "PREFECT_"))
    }
    kept |= {"PYTHONPATH": str(checkout), "DO_NOT_TRACK": "true", **(env or {})}
    return subprocess.run(
        [sys.executable, *(["-m", module] if module else []), *arguments],
        cwd=checkout, env=kept, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


def read_exports(started, checkout):
    """The environment that `up` writes for a shell; nobody else may read it."""
    assert started.returncode == 0, started.stderr[-2000:]
    file = checkout / ".onenip/stack/env"
    assert file.stat().st_mode & 0o077 == 0
    words = [shlex.split(line)[1] for line in file.read_text().splitlines()]
    exports = dict(word.split("=", 1) for word in words)
    assert exports["MLFLOW_TRACKING_PASSWORD"] not in started.stdout
    return exports


def login_of(exports):
    """User and password of Prefect's server."""
    return tuple(exports["PREFECT_API_AUTH_STRING"].split(":", 1))


def make_checkout(folder, changes):
    """A clone of this repository with other text in params.yaml."""
    subprocess.run(["git", "clone", "-q", ROOT, folder], check=True)
    params = (folder / "params.yaml").read_text()
    for old, new in changes.items():
        assert old in params
        params = params.replace(old, new, 1)
    (folder / "params.yaml").write_text(params)


def list_runs(exports, **state):
    """Flow runs in a state, such as `type="COMPLETED"`, newest first."""
    kind = {key: {"any_": [value]} for key, value in state.items()}
    body = {"flow_runs": {"state": kind} if kind else {}, "sort": "START_TIME_DESC"}
    address = f"{exports['PREFECT_API_URL']}/flow_runs/filter"
    return httpx.post(address, json=body, auth=login_of(exports)).raise_for_status().json()


def wait_until(check, seconds):
    """What `check` gives once it gives something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            found = check()
        except httpx.HTTPError:
            found = None
        if found:
            return found
        time.sleep(1)
    raise AssertionError(f"not within {seconds} s")


def test_the_stack_starts_runs_a_schedule_and_stops(tmp_path):
    """`up` brings all; a scheduled run really starts; a run that died is told; `down` ends all."""
    checkout, inbox = tmp_path / "checkout", tmp_path / "inbox"
    inbox.mkdir()
    with receiving() as receiver:
        changes = {
            "inbox:": f"inbox: {inbox} #",
            "'*/15 * * * *'": "'* * * * *'",
            "  webhook:": f"  webhook: {receiver.address} #",
        }
        make_checkout(checkout, changes)
        try:
            started = call(checkout, "up")
            exports = read_exports(started, checkout)
            check_pages_ask_nobody_else(exports, started.stdout.split()[-1])
            check_nobody_gets_in(exports, checkout)
            assert httpx.get(f"{exports['MLFLOW_TRACKING_URI']}/health").is_success
            assert call(checkout, "status").returncode == 0
            assert any((checkout / ".onenip/stack/page").iterdir())  # not among the packages
            niceness = read_niceness(checkout)
            assert niceness["onenip-training"] > niceness["onenip-light"]

            def find():
                return [
                    run for run in list_runs(exports, type="COMPLETED") if run["auto_scheduled"]
                ]

            assert wait_until(find, 300)
            check_crash_is_told(exports, receiver)
            check_cancel_ends_the_stage(exports, checkout)
            tested = call(checkout, "webhooks", "--test", module="onenip", env=exports)
            assert tested.stdout == "registry webhook: unchanged\n"
            assert receiver.deliveries[-1].content["entity"] == "model_version"
        finally:
            stopped = call(checkout, "down")
    assert "prefect stopped" in stopped.stdout
    assert call(checkout, "status").returncode == 1


def read_niceness(checkout):
    """Niceness of each worker, by its pool."""
    content = json.loads((checkout / ".onenip/stack/services.json").read_text())
    return {
        one["name"].removeprefix("worker "): psutil.Process(one["process_id"]).nice()
        for one in content
        if one["name"].startswith("worker ")
    }


def check_pages_ask_nobody_else(exports, trainings):
    """MLflow's page opens at the runs, and neither page asks a server elsewhere for anything."""
    if not CHROMIUM.exists():
        return
    ours, asked = {urlsplit(exports[key]).netloc for key in ADDRESSES}, set()
    user, password = exports["MLFLOW_TRACKING_USERNAME"], exports["MLFLOW_TRACKING_PASSWORD"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
        login = {"username": user, "password": password, "origin": exports["MLFLOW_TRACKING_URI"]}
        page = browser.new_context(http_credentials=login).new_page()
        page.set_default_timeout(240_000)
        page.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
        page.goto(trainings)
        page.get_by_role("heading", name="Runs").wait_for()
        page.goto(exports["PREFECT_API_URL"].removesuffix("/api"))
        page.locator("input[type=password]").fill(exports["PREFECT_API_AUTH_STRING"])
        page.keyboard.press("Enter")
        page.get_by_text("Deployments", exact=True).first.wait_for()  # of the classic page
        browser.close()
    assert ours <= asked
    assert asked - ours <= {""}  # data: and blob:


def check_nobody_gets_in(exports, checkout):
    """Without its credentials no server of the stack takes or gives anything, whoever asks from where."""
    api, mlflow = exports["PREFECT_API_URL"], exports["MLFLOW_TRACKING_URI"]
    login = login_of(exports)
    deployment = httpx.get(f"{api}/deployments/name/drift/drift", auth=login).json()["id"]
    runs = f"{api}/deployments/{deployment}/create_flow_run"
    proof = checkout / "taken-over"
    shell = {"job_variables": {"command": f"touch {proof}"}}
    assert httpx.post(runs, json=shell).status_code == 401
    assert httpx.post(runs, json=shell, auth=login).status_code in (409, 422)
    variables = {"job_variables": {"env": {"PYTHONPATH": "/tmp"}}}
    assert httpx.post(runs, json=variables, auth=login).status_code in (409, 422)
    assert httpx.post(f"{api}/flow_runs/filter", json={}).status_code == 401
    assert (
        httpx.post(f"{api}/work_pools/", json={"name": "x"}, auth=("onenip", "guess")).status_code
        == 401
    )
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(runs, headers=asked)
    assert "access-control-allow-origin" not in answer.headers
    search = f"{mlflow}/api/2.0/mlflow/experiments/search"
    account = (exports["MLFLOW_TRACKING_USERNAME"], exports["MLFLOW_TRACKING_PASSWORD"])
    assert httpx.post(search, json={"max_results": 1}).status_code == 401
    assert httpx.post(search, json={"max_results": 1}, auth=account).is_success
    rebound = httpx.post(
        search, json={"max_results": 1}, auth=account, headers={"Host": "evil.example"}
    )
    assert rebound.status_code == 403
    foreign = {"Origin": "http://evil.example"}
    assert (
        httpx.post(search, json={"max_results": 1}, auth=account, headers=foreign).status_code
        == 403
    )
    assert httpx.get(exports["AWS_ENDPOINT_URL"]).status_code == 403
    server = json.loads((checkout / ".onenip/stack/services.json").read_text())
    (weed,) = [one["process_id"] for one in server if one["name"] == "s3"]
    for port in {
        c.laddr.port for c in psutil.Process(weed).net_connections() if c.status == "LISTEN"
    }:
        for path in ("/dir/assign", "/buckets/?pretty=y", "/dir/status", "/buckets/mlflow"):
            check_port_gives_nothing(port, path)
    assert not proof.exists()


def check_port_gives_nothing(port, path):
    """A port of the S3 server answers no stranger but with a refusal, if it speaks HTTP at all."""
    try:
        answers = [
            httpx.request(verb, f"http://127.0.0.1:{port}{path}") for verb in ("GET", "DELETE")
        ]
    except httpx.HTTPError:  # gRPC
        return
    assert {answer.status_code for answer in answers} <= {400, 401, 403, 404, 405}


def check_crash_is_told(exports, receiver):
    """The server tells of a deployment's run that is called crashed."""
    api = exports["PREFECT_API_URL"]
    server = httpx.Client(auth=login_of(exports))
    deployment = server.get(f"{api}/deployments/name/drift/drift").raise_for_status().json()["id"]
    runs = f"{api}/deployments/{deployment}/create_flow_run"
    run = wait_until(lambda: server.post(runs, json={"state": None}).raise_for_status(), 120)
    address = f"{api}/flow_runs/{run.json()['id']}/set_state"
    state = {"type": "CRASHED", "message": "the host is gone"}
    server.post(address, json={"state": state, "force": True}).raise_for_status()

    def find():
        return [one for one in receiver.deliveries if "crashed" in one.body]

    (told,) = wait_until(find, 60)
    assert told.content["kind"] == "run-failed"
    assert told.content["text"] == "drift crashed: the host is gone"


def check_cancel_ends_the_stage(exports, checkout):
    """A run that is cancelled on Prefect's page leaves neither DVC nor the stage that it started."""
    (checkout / "stage.py").write_text(WAITING_STAGE)
    (checkout / "flows/waiting.py").write_text(WAITING_FLOW)
    graph = (checkout / "dvc.yaml").read_text()
    stage = f"stages:\n  waiting:\n    cmd: PYTHONPATH=. {sys.executable} stage.py\n"
    (checkout / "dvc.yaml").write_text(graph.replace("stages:\n", stage, 1))
    done = call(checkout, "-c", DEPLOY_WAITING, module=None, env=exports)
    assert done.returncode == 0, done.stderr[-2000:]
    api, server = exports["PREFECT_API_URL"], httpx.Client(auth=login_of(exports), timeout=60)
    found = server.get(f"{api}/deployments/name/waiting/waiting").raise_for_status().json()
    scheduled, runs = {"state": {"type": "SCHEDULED"}}, f"{api}/deployments/{found['id']}"
    run = wait_until(  # its database may be busy
        lambda: server.post(f"{runs}/create_flow_run", json=scheduled).raise_for_status(), 120
    )
    address = f"{api}/flow_runs/{run.json()['id']}"
    number = checkout / "number"
    wait_until(lambda: number.is_file() and number.read_text(), 240)
    stage = psutil.Process(int(number.read_text()))
    family = [stage, *(one for one in stage.parents() if "repro" in one.cmdline())]

    server.post(f"{address}/set_state", json={"state": {"type": "CANCELLING"}}).raise_for_status()

    wait_until(lambda: server.get(address).json()["state_type"] == "CANCELLED", 120)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert len(family) == 2
    assert not alive


def test_postgresql_keeps_runs_and_champions_over_a_restart(tmp_path, tiny_model):
    """One URL for each server; after `down` and `up` the flow run and the approved model are there."""
    checkout = tmp_path / "checkout"
    make_checkout(checkout, {})
    evaluation = write_figures(tmp_path / "evaluation", tiny_model)
    script = REGISTER.format(model=str(tiny_model), evaluation=str(evaluation))
    with running_postgres("prefect", "mlflow") as urls:
        env = {
            "PREFECT_API_DATABASE_CONNECTION_URL": urls["prefect"],
            "MLFLOW_BACKEND_STORE_URI": urls["mlflow"],
        }
        try:
            started = call(checkout, "up", env=env)
            exports = read_exports(started, checkout)
            assert started.stdout.count("(PostgreSQL 127.0.0.1/") == 2
            done = call(checkout, "-c", script, module=None, env=exports)
            assert done.returncode == 0, done.stderr[-2000:]
            words = ("approve", "disc", "--by", "Ada", "--reason", "good")
            assert call(checkout, *words, module="onenip", env=exports).returncode == 0
            assert call(checkout, module="flows.drift", env=exports).returncode == 0
            before = list_runs(exports, type="COMPLETED")
            assert before
            call(checkout, "down")
            # a shell that keeps the exports gets the same servers again
            exports = read_exports(call(checkout, "up", env=env | exports), checkout)
            after = list_runs(exports, type="COMPLETED")
            assert {run["id"] for run in before} <= {run["id"] for run in after}
            listed = call(checkout, "audit", module="onenip", env=exports)
            assert "approve" in listed.stdout
            loaded = call(
                checkout,
                "-c",
                "from onenip.registry.champions import load_champion; load_champion('disc')",
                module=None,
                env=exports,
            )
            assert loaded.returncode == 0, loaded.stderr[-2000:]
        finally:
            call(checkout, "down")
        assert not (checkout / "mlflow.db").exists()
    refused = call(checkout, "up", env=env)
    assert refused.returncode == 2
    assert refused.stderr.startswith("onenip: PREFECT_API_DATABASE_CONNECTION_URL: postgresql")
    assert len(refused.stderr.splitlines()) == 1
    assert "s3cret" not in refused.stderr
