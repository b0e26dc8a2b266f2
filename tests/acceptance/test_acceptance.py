"""The product's reason to be, once, on real servers: arrive, retrain, judge, approve, serve, roll back."""

from __future__ import annotations

import http.server
import json
import random
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import boto3
import httpx
import pytest

from onenip import versioning
from onenip.registry import audit, versions
from onenip.registry.loading import load_champion
from onenip.sources.local_s3 import running_s3
from tests.acceptance import plant

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


def drop_twelve(put, products: plant.Products, data: Path) -> None:
    """Twelve arrivals: eight good ones, two bad, one duplicate, one with a defect."""
    first, second = products.first, products.second
    for name in (first, second):
        for path in products.arrivals[name][:4]:
            put(f"{name}/{path.name}", path.read_bytes())
    put(f"{first}/empty.png", b"")
    put(f"{first}/cut.jpg", products.arrivals[first][5].read_bytes()[:500])
    known = sorted((data / second / "train/good").iterdir())[0]
    put(f"{second}/again{known.suffix}", known.read_bytes())
    put(f"{first}/slipped-in{products.defect.suffix}", products.defect.read_bytes())


def test_twelve_arrivals_become_a_champion_and_a_decision(tmp_path, monkeypatch, capsys):
    """New images arrive in S3; everything up to the decision happens by itself."""
    checkout = tmp_path / "checkout"
    env = plant.base_environment(checkout)
    with ExitStack() as stack:
        s3 = stack.enter_context(running_s3(tmp_path / "s3", buckets=(plant.BUCKET,)))
        env |= s3.environment
        hook = stack.enter_context(Receiver())
        products = plant.make_checkout(
            checkout, env, inbox=f"s3://{plant.BUCKET}/inbox", remote=f"s3://{plant.BUCKET}/dvc"
        )
        first, second = products.first, products.second
        artifacts = f"s3://{plant.BUCKET}/mlflow"
        env["MLFLOW_TRACKING_URI"] = stack.enter_context(
            plant.mlflow_server(tmp_path, env, artifacts=artifacts)
        )
        env["PREFECT_API_URL"] = stack.enter_context(plant.prefect_server(tmp_path, env))
        monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
        for name in ("MLFLOW_TRACKING_URI", *s3.environment):
            monkeypatch.setenv(name, env[name])
        sections = plant.SECTIONS | {
            "gate": {**plant.SECTIONS["gate"], "categories": {second: plant.CAUTIOUS}},
            "retrain": {
                **plant.SECTIONS["retrain"],
                "inbox": f"s3://{plant.BUCKET}/inbox",
                "policies": {first: "auto", second: "auto"},
            },
            "notify": {"webhook": hook.address},
        }
        plant.write_params(checkout, sections)

        # first training, approved by a person
        python = [sys.executable, "-m"]
        plant.run([*python, "flows.pipeline"], checkout, env)
        for name in (first, second):
            plant.run(
                [*python, "onenip", "approve", name, "--by", "Ada", "--reason", "first"],
                checkout,
                env,
            )
        before, _ = load_champion(first)
        server = stack.enter_context(plant.product_server(checkout, env))
        picture = sorted((checkout / "data" / first / "test/good").iterdir())[0]
        assert ask(server, first, picture)["digest"] == before.digest

        # twelve images arrive; schedule and event do the rest
        names = plant.run([*python, "flows.schedules"], checkout, env).split()
        assert "retrain/retrain" in names
        stack.enter_context(plant.workers(checkout, env, ("onenip-light", "onenip-training")))
        client = boto3.client("s3")
        drop_twelve(
            lambda key, body: client.put_object(Bucket=plant.BUCKET, Key=f"inbox/{key}", Body=body),
            products,
            checkout / "data",
        )
        plant.run([*python, "onenip", "notify", first], checkout, env)
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
        fill_in_form(env["PREFECT_API_URL"])
        plant.wait_until(lambda: versions.champion(second).number == 2, 180, "the approval")
        assert versions.champion(second).approver == "Grace"
        plant.wait_until(lambda: ask(server, second, picture)["version"] == 2, 60, "its serving")

        # a mistake is rolled back with one command, and the record is whole
        plant.run(
            [*python, "onenip", "rollback", first, "--by", "Ada", "--reason", "complaint"],
            checkout,
            env,
        )
        assert load_champion(first)[0].digest == before.digest
        plant.wait_until(
            lambda: ask(server, first, picture)["digest"] == before.digest, 60, "the old model"
        )
        with capsys.disabled():
            sys.stdout.write(plant.run([*python, "onenip", "audit"], checkout, env))
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
    arrived = versioning.read_version_at("onenip/arrivals", root=checkout)
    assert arrived != versioning.read_version_at("main", root=checkout)
    origin = checkout.with_name(f"{checkout.name}.git")
    reference = "refs/heads/onenip/arrivals"
    pushed = versioning.find_commit(reference, root=origin)
    assert pushed == versioning.find_commit(reference, root=checkout)


def test_kills_at_ten_random_moments_end_as_an_undisturbed_run(tmp_path, monkeypatch):
    """SIGKILL of a retraining, ten times, then one run to the end: the same data, model and decisions."""
    origin = tmp_path / "origin"
    env = plant.base_environment(origin)
    env.pop("MLFLOW_TRACKING_URI", None)
    products = plant.make_checkout(origin, env, inbox="inbox", remote=str(tmp_path / "remote"))
    team = tmp_path / "origin.git"
    sections = plant.SECTIONS | {
        "gate": {**plant.SECTIONS["gate"], "categories": {products.second: plant.CAUTIOUS}},
        "retrain": {**plant.SECTIONS["retrain"], "inbox": "inbox", "policy": "auto"},
    }
    plant.write_params(origin, sections)
    with plant.prefect_server(tmp_path, env) as address:
        env["PREFECT_API_URL"] = address
        python = [sys.executable, "-m"]
        plant.run([*python, "flows.pipeline"], origin, env)
        for name in (products.first, products.second):
            command = [*python, "onenip", "approve", name, "--by", "Ada", "--reason", "first"]
            plant.run(command, origin, env)

        def put(key, body):
            path = origin / "inbox" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)

        drop_twelve(put, products, origin / "data")
        ends = []
        for name, kills in (("calm", 0), ("killed", 10)):
            # the same place each time, because MLflow's local store names its own path
            for folder in (origin, team):
                shutil.copytree(folder, tmp_path / f"{name}-{folder.name}", symlinks=True)
            chance = random.Random(23)
            own = env | {"PREFECT_HOME": str(tmp_path / f"{name}-home")}
            for _ in range(kills):
                process = subprocess.Popen(
                    [*python, "flows.retrain", "--force"],
                    cwd=origin,
                    env=own,
                    start_new_session=True,
                )
                plant.kill_at_random(process, chance, 45.0)
            last = None
            for _ in range(5):  # a decision that was killed keeps others out for two minutes
                last = subprocess.run(
                    [*python, "flows.retrain", "--force"],
                    cwd=origin, env=own, capture_output=True, text=True, check=False,
                )  # fmt: skip
                if last.returncode == 0:
                    break
            assert last.returncode == 0, last.stdout[-2000:] + last.stderr[-2000:]
            ends.append(describe(origin, products, monkeypatch))
            reference = "refs/heads/onenip/arrivals"
            tips = {versioning.find_commit(reference, root=root) for root in (origin, team)}
            assert len(tips) == 1  # all was pushed
            for folder in (origin, team):
                shutil.rmtree(folder)
                (tmp_path / f"{name}-{folder.name}").rename(folder)

    assert ends[0] == ends[1]
    assert ends[0]["champions"][products.first]["by"] == "gate"
    assert ends[0]["left"] == []


def describe(checkout: Path, products: plant.Products, monkeypatch) -> dict[str, object]:
    """All that matters of a plant after a retraining, without times."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{checkout}/mlflow.db")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)  # MLflow itself sets it
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
    shelves = {
        shelf: sorted(
            p.name for p in (checkout / f"inbox-{shelf}").rglob("*") if p.suffix != ".json"
        )
        for shelf in ("quarantine", "held", "duplicates")
    }
    return {
        "data": versioning.read_version_at("onenip/arrivals", root=checkout),
        "champions": standing,
        "shelves": shelves,
        "left": [str(p) for p in (checkout / "inbox").rglob("*") if p.is_file()],
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
    found = httpx.post(f"{api}/flow_runs/filter", json=body).raise_for_status().json()
    return found[0]["id"] if found else None
