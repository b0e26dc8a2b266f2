"""The product's reason to be, once, on real servers: arrive, retrain, judge, approve, serve, roll back."""

from __future__ import annotations

import contextlib
import http.server
import json
import random
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import boto3
import httpx
import psutil
import pytest

from onenip.data import dvc, git
from onenip.registry import audit, versions
from onenip.registry.champions import load_champion
from tests.acceptance import plant

PYTHON = (sys.executable, "-m")
POOLS = ("onenip-light", "onenip-training")

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(3600)]


class Receiver:
    """A team's webhook: a real HTTP server that keeps what it is told."""

    def __init__(self) -> None:
        notices = self.notices = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                size = int(self.headers["Content-Length"])
                notices.append(json.loads(self.rfile.read(size)))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


def drop_twelve(client, products: plant.Products, data: Path) -> None:
    """Twelve arrivals in S3: eight good ones, two bad, one duplicate, one with a defect."""

    def put(key: str, body: bytes) -> None:
        client.put_object(Bucket=plant.BUCKET, Key=f"inbox/{key}", Body=body)

    first, second = products.first, products.second
    for name in (first, second):
        for path in products.arrivals[name][:4]:
            put(f"{name}/{path.name}", path.read_bytes())
    put(f"{first}/empty.png", b"")
    put(f"{first}/cut.jpg", products.arrivals[first][5].read_bytes()[:500])
    known = sorted((data / second / "train/good").iterdir())[0]
    put(f"{second}/again{known.suffix}", known.read_bytes())
    put(f"{first}/slipped-in{products.defect.suffix}", products.defect.read_bytes())


def make_plant(checkout: Path, env: dict[str, str], *, webhook: str | None) -> plant.Products:
    """A checkout whose first model is trained and approved by a person, with its inbox in S3.

    The gate promotes the first product by itself, and holds the second one for a person.
    """
    inbox = f"s3://{plant.BUCKET}/inbox"
    products = plant.make_checkout(checkout, env, inbox=inbox, remote=f"s3://{plant.BUCKET}/dvc")
    first, second = products.first, products.second
    gate, retrain = plant.SECTIONS["gate"], plant.SECTIONS["retrain"]
    policies = {first: "auto", second: "auto"}
    sections = plant.SECTIONS | {
        "gate": {**gate, "categories": {second: plant.CAUTIOUS}},
        "retrain": {**retrain, "inbox": inbox, "policies": policies},
        "notify": {"webhook": webhook},
    }
    plant.write_params(checkout, sections)
    plant.run([*PYTHON, "flows.pipeline"], checkout, env)
    for name in (first, second):
        command = [*PYTHON, "onenip", "approve", name, "--by", "Ada", "--reason", "first"]
        plant.run(command, checkout, env)
    return products


def follow(servers: plant.Servers, monkeypatch) -> None:
    """Have this process speak to the servers, too."""
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)  # MLflow itself sets it
    for name, value in servers.environment.items():
        monkeypatch.setenv(name, value)


def test_twelve_arrivals_become_a_champion_and_a_decision(tmp_path, monkeypatch, capsys):
    """New images arrive in S3; everything up to the decision happens by itself."""
    checkout = tmp_path / "checkout"
    env = plant.base_environment(checkout)
    with ExitStack() as stack:
        servers = stack.enter_context(plant.Servers(tmp_path / "servers", env))
        hook = stack.enter_context(Receiver())
        env |= servers.environment
        follow(servers, monkeypatch)
        products = make_plant(checkout, env, webhook=hook.address)
        first, second = products.first, products.second
        before, _ = load_champion(first)
        server = stack.enter_context(plant.product_server(checkout, env))
        picture = sorted((checkout / "data" / first / "test/good").iterdir())[0]
        assert ask(server, first, picture)["digest"] == before.digest

        # twelve images arrive; schedule and event do the rest
        assert "retrain/retrain" in plant.run([*PYTHON, "flows.deploy"], checkout, env).split()
        stack.enter_context(plant.workers(checkout, env, POOLS))
        client = boto3.Session().client("s3")
        drop_twelve(client, products, checkout / "data")
        plant.run([*PYTHON, "onenip", "notify", first], checkout, env)
        wait_for_notice(hook, second)
        check_arrivals(client, checkout)

        # one promoted by the gate, one held for a person
        promoted, held = versions.champion(first), versions.challenger(second)
        assert (promoted.number, promoted.approver) == (2, "gate")
        assert held.gate.verdict == "hold"
        assert versions.champion(second).number == 1
        after, _ = load_champion(first)
        assert after.digest != before.digest
        plant.wait_until(
            lambda: ask(server, first, picture)["digest"] == after.digest, 60, "the served model"
        )
        assert ask(server, second, picture)["version"] == 1

        # a person fills in the form
        fill_in_form(servers.api)
        plant.wait_until(lambda: versions.champion(second).number == 2, 180, "the approval")
        assert versions.champion(second).approver == "Grace"
        plant.wait_until(lambda: ask(server, second, picture)["version"] == 2, 60, "its serving")

        # a mistake is rolled back with one command, and the record is whole
        plant.run(
            [*PYTHON, "onenip", "rollback", first, "--by", "Ada", "--reason", "complaint"],
            checkout,
            env,
        )
        assert load_champion(first)[0].digest == before.digest
        plant.wait_until(
            lambda: ask(server, first, picture)["digest"] == before.digest, 60, "the old model"
        )
        with capsys.disabled():
            sys.stdout.write(plant.run([*PYTHON, "onenip", "audit"], checkout, env))
        actions = [entry.action for entry in audit.read_trail(first)]
        assert actions == ["register", "approve", "register", "gate", "approve", "rollback"]


def check_arrivals(client, checkout: Path) -> None:
    """Nothing is lost, and nothing that should not be is in the data."""
    listed = client.list_objects_v2(Bucket=plant.BUCKET, Prefix="inbox")["Contents"]
    keys = [entry["Key"] for entry in listed]
    images = [key for key in keys if not key.endswith(".json")]
    assert not [key for key in keys if key.startswith("inbox/")]
    assert sum(key.startswith("inbox-quarantine/") for key in images) == 2
    assert any("slipped-in" in key for key in images if key.startswith("inbox-held"))
    assert any("again" in key for key in images if key.startswith("inbox-duplicates"))
    arrived = dvc.read_version_at("onenip/arrivals", root=checkout)
    assert arrived != dvc.read_version_at("main", root=checkout)
    origin = checkout.with_name(f"{checkout.name}.git")
    reference = "refs/heads/onenip/arrivals"
    pushed = git.find_commit(reference, root=origin)
    assert pushed == git.find_commit(reference, root=checkout)


def test_kills_at_ten_random_moments_end_as_an_undisturbed_run(tmp_path, monkeypatch, capsys):
    """SIGKILL of the retraining, ten times, of each server once, then on to the end: the same end state."""
    plain, servers_folder = tmp_path / "plain", tmp_path / "servers"
    checkout, team = tmp_path / "checkout", tmp_path / "checkout.git"
    env = plant.base_environment(checkout)
    servers = plant.Servers(servers_folder, env)
    with servers:
        env |= servers.environment
        follow(servers, monkeypatch)
        products = make_plant(checkout, env, webhook=None)
        plant.run([*PYTHON, "flows.deploy"], checkout, env)
        drop_twelve(boto3.Session().client("s3"), products, checkout / "data")
    folders = (checkout, team, servers_folder)
    for folder in folders:
        shutil.copytree(folder, plain / folder.name, symlinks=True)
    ends = []
    for moments in ((), list(draw_moments(random.Random(23), kills=10))):
        for folder in folders:
            shutil.rmtree(folder)
            shutil.copytree(plain / folder.name, folder, symlinks=True)
        with servers, plant.workers(checkout, env, POOLS) as (_, training):
            plant.run([*PYTHON, "onenip", "notify", products.first], checkout, env)
            hits = [
                kill_once(servers, checkout, env, training, seconds=seconds, server=server)
                for seconds, server in moments
            ]
            with capsys.disabled():
                sys.stdout.write("".join(f"killed: {hit}\n" for hit in hits))
            wait_for_retraining(servers.api)
            ends.append(describe(checkout, products))
        reference = "refs/heads/onenip/arrivals"
        tips = {git.find_commit(reference, root=root) for root in (checkout, team)}
        assert len(tips) == 1  # all was pushed

    assert len(hits) == 10
    assert ends[0] == ends[1]
    assert ends[0]["champions"][products.first]["by"] == "gate"
    assert ends[0]["left"] == []


def draw_moments(chance: random.Random, *, kills: int) -> Iterator[tuple[float, str | None]]:
    """Seconds of a retraining's life until it is killed, and which server is killed with it, if one is."""
    servers = dict(zip(chance.sample(range(kills), 3), plant.Servers.NAMES, strict=True))
    for number in range(kills):
        yield chance.uniform(1.0, 45.0), servers.get(number)


def kill_once(
    servers: plant.Servers,
    checkout: Path,
    env: dict[str, str],
    worker: int,
    *,
    seconds: float,
    server: str | None,
) -> str:
    """SIGKILL a running retraining with all that it started, perhaps a server too, which then comes back.

    A retraining that ends before its moment is followed by another one, for which the moment comes earlier.

    Returns:
        What was killed, and when.
    """
    while True:
        run = await_retraining(checkout, env, worker)
        while run.is_running() and time.time() - run.create_time() < seconds:
            time.sleep(0.05)
        if run.is_running():
            break
        seconds /= 2
    plant.kill_tree(run)
    if server is not None:
        servers.kill(server)
        time.sleep(3)
        servers.start(server)
    return f"after {seconds:.1f} s" + (f", with {server}" if server else "")


def await_retraining(checkout: Path, env: dict[str, str], worker: int) -> psutil.Process:
    """The process of a retraining, which is started by hand if none comes by itself."""
    try:
        return plant.wait_until(lambda: find_process(worker), 120, "a retraining")
    except AssertionError:
        start = ["prefect", "deployment", "run", "retrain/retrain", "--param", "force=true"]
        plant.run([*PYTHON, *start], checkout, env)
        return plant.wait_until(lambda: find_process(worker), 120, "a retraining")


def find_process(worker: int) -> psutil.Process | None:
    """The process of the flow run that a worker executes."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(worker).children():
            if "prefect.engine" in child.cmdline():  # others run the hooks of runs that crashed
                return child
    return None


def wait_for_retraining(api: str) -> None:
    """Wait until a retraining that nobody killed is done, and none is left to do."""

    def is_done() -> bool:
        runs = httpx.post(
            f"{api}/flow_runs/filter",
            json={"flows": {"name": {"any_": ["retrain"]}}},
            timeout=60,
        )
        states = [run["state_type"] for run in runs.raise_for_status().json()]
        assert "FAILED" not in states
        return "COMPLETED" in states and not {"RUNNING", "PENDING", "SCHEDULED"} & set(states)

    plant.wait_until(is_done, 900, "a retraining to its end")


def describe(checkout: Path, products: plant.Products) -> dict[str, object]:
    """All that matters of a plant after a retraining, without times."""
    standing = {}
    for name in (products.first, products.second):
        now = versions.champion(name)
        waits = versions.challenger(name)
        standing[name] = {
            "champion": (now.number, now.digest),
            "by": now.approver,
            "challenger": (waits.number, waits.digest, waits.gate.verdict) if waits else None,
            "audit": [entry.action for entry in audit.read_trail(name)],
        }
    listed = boto3.Session().client("s3").list_objects_v2(Bucket=plant.BUCKET, Prefix="inbox")
    keys = [entry["Key"] for entry in listed["Contents"]]
    return {
        "data": dvc.read_version_at("onenip/arrivals", root=checkout),
        "champions": standing,
        "shelves": sorted(key for key in keys if not key.endswith(".json")),
        "left": [key for key in keys if key.startswith("inbox/")],
        "images": sorted(str(p.relative_to(checkout)) for p in (checkout / "data").rglob("*.*")),
    }


def ask(server: str, category: str, picture: Path) -> dict[str, object]:
    """What the running server answers."""
    body = {"files": {"file": picture.read_bytes()}, "data": {"category": category}}
    answer = httpx.post(f"{server}/predict/file", timeout=120, **body)
    return answer.raise_for_status().json()


def wait_for_notice(hook: Receiver, category: str) -> None:
    """Wait until the team is told that the version which arrivals made waits for a person."""
    expected = {"kind": "challenger-waits", "category": category, "version": 2}
    plant.wait_until(
        lambda: any(expected.items() <= notice.items() for notice in hook.notices), 900, "a notice"
    )


def fill_in_form(api: str) -> None:
    """Approve in Prefect's page: what its form sends."""
    run_id = plant.wait_until(lambda: find_suspended(api), 180, "the form of the held version")
    answer = {"decision": "approve", "by": "Grace", "reason": "looked at it", "override": False}

    def send() -> bool:
        form = {"run_input": answer}
        found = httpx.post(f"{api}/flow_runs/{run_id}/resume", json=form, timeout=60)
        if found.status_code == httpx.codes.SERVICE_UNAVAILABLE:  # a busy server: press it again
            return find_suspended(api) is None
        return found.raise_for_status().is_success

    plant.wait_until(send, 60, "an answer to the form")


def find_suspended(api: str) -> str | None:
    """Id of the flow run that waits for a form."""
    body = {"flow_runs": {"state": {"name": {"any_": ["Suspended"]}}}}
    found = httpx.post(f"{api}/flow_runs/filter", json=body, timeout=60).raise_for_status().json()
    return found[0]["id"] if found else None
