"""A real MLflow server: it tells the team of changes, and may be killed and come back at any moment."""

import os
import signal
import subprocess
import sys
import time
from unittest.mock import patch

import httpx
import pytest
from requests.adapters import HTTPAdapter
from typer.testing import CliRunner

from onenip import Detector
from onenip.cli import app
from onenip.errors import RegistryError
from onenip.operation.notices import notify
from onenip.params import NotifyParams
from onenip.registry import approval, audit, lock, store, versions
from onenip.registry.publishing import publish
from onenip.registry.tags import registered_name, to_tags
from onenip.registry.webhooks import ensure_webhook, send_example
from onenip.serving.champions import Follower
from tests.receiver import receiving
from tests.tiny import CATEGORIES, write_figures

SECRET = "a shared secret"
EVENTS = ("model_version.created", "model_version_tag.set", "model_version_alias.created")


class Server:
    """MLflow's server on one port and one SQLite file, started and killed at will."""

    def __init__(self, folder, port):
        self.folder, self.port, self.process = folder, port, None
        self.address = f"http://127.0.0.1:{port}"

    def start(self):
        """Start it and wait until it answers."""
        env = os.environ | {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
            "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
            "MLFLOW_WEBHOOK_CACHE_TTL": "1",
            "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": "A" * 43 + "=",
        }
        command = [
            sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=env, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 150
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.address}/health", timeout=2).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.2)
        raise AssertionError((self.folder / "log").read_text()[-2000:])

    def kill(self):
        """End it without a chance to finish anything."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A running server, killed at the end."""
    from flows.services import find_free_port

    server = Server(tmp_path_factory.mktemp("mlflow"), find_free_port())
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory, tiny_model):
    """An evaluation's folder with a metric per category."""
    return write_figures(tmp_path_factory.mktemp("evaluation"), tiny_model)


@pytest.fixture
def registry(server, tmp_path, monkeypatch):
    """The server as everybody's registry."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(name, server.address)
    return server


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_server_that_dies_loses_nothing_and_promotes_nothing(
    registry, tiny_model, evaluation, monkeypatch
):
    """Killed while versions are registered, and while one is approved: the next attempt completes both."""

    def register():
        return publish(tiny_model, evaluation_dir=evaluation, params={}, facts={})

    def approve():
        return approval.approve("disc", by="Ada", reason="good")

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for work, moment in (
        (register, "create_model_version"),
        (approve, "set_registered_model_alias"),
    ):
        _kill_before(registry, moment, monkeypatch)
        with pytest.raises(RegistryError, match=r"127\.0\.0\.1|disc"):
            work()
        with pytest.raises(RegistryError):  # still down: said again, in one line
            versions.champion("disc")
        registry.start()
        assert versions.champion("disc") is None
        work()

    assert versions.champion("disc").approver == "Ada"
    assert versions.champion("stripes") is None
    assert [(v.number, v.aliases) for v in versions.list_versions("disc")] == [(1, ("champion",))]
    assert [entry.action for entry in audit.read_trail("disc")] == ["register", "approve"]
    assert not audit.find_breaks(audit.read_trail())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("registry")
def test_requests_do_not_grow_with_categories(tiny_detector, tmp_path, monkeypatch):
    """Status, a server's refresh and an approval; a server follows an approval within ten requests."""
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 1000.0)  # on a slow machine it would count
    model = Detector(
        tiny_detector.network,
        spec=tiny_detector.spec.model_copy(update={"provenance": {"note": "another"}}),
        states={name: tiny_detector.state(name) for name in CATEGORIES},
    )
    model.save(tmp_path / "model")
    scored = write_figures(tmp_path / "scored", tmp_path / "model")
    (waiting, _) = publish(tmp_path / "model", evaluation_dir=scored, params={}, facts={})
    follower = Follower()

    def count(work):
        send = HTTPAdapter.send
        with patch.object(HTTPAdapter, "send", autospec=True, side_effect=send) as sent:
            work()
        paths = [call.args[1].path_url for call in sent.call_args_list]
        return sum("server-info" not in path for path in paths)  # which MLflow asks now and then

    def status():
        assert CliRunner().invoke(app, ["status"]).exit_code == 0

    def count_all(category):
        return [
            count(status),
            count(lambda: approval.approve(category, by="Ada", reason="good")),
            count(follower.refresh),
            count(follower.refresh),
        ]

    few = count_all("disc")
    assert follower.roster.serving["disc"].detector.digest == model.digest
    register_waiting([f"part{number:02}" for number in range(6)], like=waiting)
    more = count_all("stripes")

    assert follower.roster.serving["stripes"].detector.digest == model.digest
    assert few[2] < 10  # with the model itself
    assert more[2] == more[3] == few[3]
    assert more[:2] == few[:2]


def register_waiting(names, *, like):
    """Categories with a challenger each, of a model that is stored already."""
    client, model = store.connect(), like.weights_uri.rpartition("/")[2]
    tags = to_tags(digest=like.digest, weights_uri=like.weights_uri, metrics={}, facts={})
    for name in names:
        registered = registered_name(name)
        client.create_registered_model(registered)
        client.create_model_version(registered, source=like.weights_uri, tags=tags, model_id=model)
        client.set_registered_model_alias(registered, versions.CHALLENGER, "1")
        audit.record(name, "register", version=1, by="pipeline", reason="counted")


@pytest.mark.usefixtures("registry")
def test_the_registry_itself_tells_of_versions_aliases_and_tags(monkeypatch):
    """MLflow POSTs each event once, signed, to the address registered last; registering again adds none."""
    client = store.connect()
    with receiving() as receiver:

        def ensure(address, secret=SECRET):
            return ensure_webhook(address, events=EVENTS, secret=secret)

        changes = [
            ensure("http://127.0.0.1:9/"),
            ensure(receiver.address),
            ensure(receiver.address),
        ]
        assert changes == ["registered", "updated", "unchanged"]
        assert send_example() == ""
        (example,) = receiver.wait_for(1)
        assert example.is_signed(SECRET, prefix="x-mlflow")
        time.sleep(1.1)  # the server looks its webhooks up again

        client.create_registered_model("onenip-cap")
        client.create_model_version("onenip-cap", source="s3://none/none")
        client.set_model_version_tag("onenip-cap", "1", "approval", "pending")
        client.set_registered_model_alias("onenip-cap", "challenger", "1")
        told = receiver.wait_for(4)[1:]

        assert all(delivery.is_signed(SECRET, prefix="x-mlflow") for delivery in told)
        events = {f"{d.content['entity']}.{d.content['action']}" for d in told}
        assert events == set(EVENTS)
        assert {d.content["data"]["name"] for d in told} == {"onenip-cap"}
        assert [ensure(None), ensure(None)] == ["removed", "none"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(RegistryError, match="MLFLOW_TRACKING_URI"):
        ensure(receiver.address)


def test_a_notice_is_signed_and_tried_again(monkeypatch):
    """A receiver that was overloaded for a moment gets the notice, and can tell who sent it."""
    monkeypatch.setenv("ONENIP_WEBHOOK_SECRET", SECRET)
    with receiving() as receiver:
        monkeypatch.setenv("TEAM_HOOK", receiver.address)
        receiver.failures = 1
        params = NotifyParams(webhook="$TEAM_HOOK", timeout_seconds=5)
        assert notify("run-failed", "retrain failed", facts={"run": "brave-owl"}, params=params)
        receiver.failures = 3
        assert not notify("run-failed", "again", facts={}, params=params)

    (notice,) = receiver.deliveries
    assert notice.content["text"] == "retrain failed"
    assert notice.is_signed(SECRET, prefix="webhook")
    assert not notice.is_signed("another", prefix="webhook")


def _kill_before(server, moment, monkeypatch):
    """Let the server die right before the first call of a client's method."""
    from mlflow import MlflowClient

    call = getattr(MlflowClient, moment)

    def die_first(*arguments, **named):
        monkeypatch.setattr(MlflowClient, moment, call)
        server.kill()
        return call(*arguments, **named)

    monkeypatch.setattr(MlflowClient, moment, die_first)
