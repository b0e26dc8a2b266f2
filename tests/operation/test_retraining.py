"""Steps of retraining against a real MLflow store: gate results, policy, warm start, drift, notices."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from onenip import Detector
from onenip.ingestion.journal import Journal
from onenip.operation import retraining
from onenip.operation.champion_report import (
    evaluate_champions,
    find_decision_report,
    write_decision_report,
)
from onenip.operation.drift import look_for_drift
from onenip.operation.notices import NoticeError, emit, notify
from onenip.params import NotifyParams, Params
from onenip.params.reading import read_yaml
from onenip.registry import approval, audit, publishing, versions
from onenip.registry.champions import Champions
from onenip.registry.tags import GateResult
from onenip.stages import evaluate
from tests.tiny import list_samples, make_tiny_params, write_figures

PROMOTE = GateResult(verdict="promote", reasons=("better",), judged_at=datetime.now(tz=UTC))


@pytest.fixture
def registry(tmp_path, tiny_model, monkeypatch):
    """A local store in which the tiny model is the challenger of both categories."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):  # MLflow itself sets them
        monkeypatch.delenv(name, raising=False)
    evaluation = write_figures(tmp_path / "evaluation", tiny_model)
    return publishing.publish(tiny_model, evaluation_dir=evaluation, params={}, facts={})


def test_the_gate_is_recorded_once_and_policy_decides_alone_only_where_it_may(registry):
    """`auto` promotes what the gate promotes on real defects; `manual` and provisional wait."""
    disc, stripes = registry
    params = make_tiny_params(retrain={"policies": {"disc": "auto", "stripes": "auto"}})
    provisional = PROMOTE.model_copy(update={"is_provisional": True})

    assert retraining.record_gate(disc, PROMOTE)
    assert retraining.record_gate(disc, PROMOTE)  # again, as after a kill
    assert not retraining.decide_by_policy(disc, PROMOTE, make_tiny_params())
    assert not retraining.decide_by_policy(stripes, provisional, params)
    assert retraining.decide_by_policy(disc, PROMOTE, params)

    assert versions.champion("disc").approver == "gate"
    assert versions.champion("stripes") is None
    actions = [entry.action for entry in audit.read_trail("disc")]
    assert actions == ["register", "gate", "approve"]
    assert not retraining.record_gate(disc, PROMOTE)  # decided: nothing more is recorded


@pytest.mark.usefixtures("registry")
def test_training_starts_from_the_champion_of_most_categories(tmp_path, tiny_detector):
    """retrain.yaml names its folder as long as data and params are the same; without a champion, null."""
    params = make_tiny_params()
    path = tmp_path / "retrain.yaml"
    path.write_text("warm_start: null\n")

    assert retraining.write_warm_start(params, root=tmp_path) is None
    approval.approve("disc", by="Ada", reason="good")
    assert retraining.write_warm_start(params, root=tmp_path) is None
    path.unlink()
    folder = retraining.write_warm_start(params, root=tmp_path)

    assert folder == f"artifacts/warm_start/{tiny_detector.digest[:16]}"
    assert read_yaml(path)["warm_start"] == folder
    assert (tmp_path / folder / "model.safetensors").is_file()
    assert retraining.write_warm_start(params, root=tmp_path) == folder
    scratch = make_tiny_params(retrain={"warm_start": "scratch"})
    assert retraining.write_warm_start(scratch, root=tmp_path) is None
    assert retraining.write_warm_start(params, root=tmp_path) == folder
    assert not (tmp_path / "params.yaml").exists()


@pytest.mark.usefixtures("registry")
def test_a_champion_is_loaded_once_for_all_that_it_serves(tiny_detector):
    """Both categories get the same detector; one without a champion gets none."""
    champions = Champions()
    approval.approve("disc", by="Ada", reason="good")

    assert champions.find("disc").digest == tiny_detector.digest
    assert champions.find("disc") is champions.find("disc")
    assert champions.find("stripes") is None


@pytest.mark.usefixtures("registry")
def test_drift_is_seen_in_what_the_champion_said_of_arrivals(tmp_path, tiny_detector):
    """Scores in the journal far above those at approval pass the limits."""
    approval.approve("disc", by="Ada", reason="good")
    params = make_tiny_params(drift={"min_images": 5})
    spec = tiny_detector.spec.categories["disc"]
    with Journal(tmp_path / "journal.sqlite") as journal:
        for i in range(8):
            now = datetime.now(tz=UTC)
            journal.add(key=f"disc/{i}.png", version="1", size=1, arrived_at=now, category="disc")
        for item in journal.list_items():
            values = {
                "state": "done",
                "outcome": "held",
                "digest": tiny_detector.digest,
                "score": spec.image_threshold + 9,
                "threshold": spec.image_threshold,
                "distance": 1.0,
            }
            journal.update(item, values)
        (found,) = look_for_drift(
            params, journal=journal, champions=Champions(), manifest=Path("none.csv")
        )

    assert found.is_drifting
    assert found.alarm_share == 1.0


@pytest.mark.usefixtures("registry")
def test_what_serves_already_is_not_judged_again(tmp_path, tiny_model, tiny_data, monkeypatch):
    """Only categories for which the model is new come back; the same again is remembered."""
    (tmp_path / "data").symlink_to(tiny_data)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "textures").mkdir()
    photo = next((tiny_data / "disc/train/good").iterdir())
    shutil.copy(photo, tmp_path / "textures/wood.png")
    slow = {"max_seconds": 1000.0, "max_slowdown": 1000.0}
    params = make_tiny_params(gate=slow, synthesize={"textures": "textures"})
    manifest = write_manifest(tmp_path / "manifest.csv", tiny_data, params)
    approval.approve("disc", by="Ada", reason="good")

    def judge(params):
        return retraining.judge_categories(
            params, model_dir=tiny_model, manifest=manifest, champions=Champions()
        )

    found = judge(params)
    assert list(found) == ["stripes"]
    assert "there is no champion yet" in found["stripes"].reasons
    monkeypatch.setattr(retraining, "collect_evidence", None)
    assert judge(params) == found
    with pytest.raises(TypeError):
        judge(make_tiny_params(gate={**slow, "min_normals": 3}))
    shutil.copy(photo, tmp_path / "textures/stone.png")  # anomalies are drawn with it
    with pytest.raises(TypeError):
        judge(params)


@pytest.mark.usefixtures("registry")
def test_the_champion_stands_beside_the_new_model_in_the_report(
    tmp_path, tiny_model, tiny_data, monkeypatch
):
    """Only categories with another champion; the same images; asked once; the report is kept by model."""
    (tmp_path / "data").symlink_to(tiny_data)
    monkeypatch.chdir(tmp_path)
    params = make_tiny_params(evaluate={"bootstrap_draws": 100})
    manifest = write_manifest(tmp_path / "manifest.csv", tiny_data, params)
    detector = Detector.load(tiny_model)
    detector.spec = detector.spec.model_copy(update={"provenance": {"note": "another"}})
    detector.save(tmp_path / "new")
    options = {"model_dir": tmp_path / "new", "evaluation_dir": tmp_path / "scored"}
    asked = options | {"manifest": manifest}
    evaluate.run(
        params,
        model_dir=tmp_path / "new",
        data_dir=tiny_data,
        manifest=manifest,
        out_dir=tmp_path / "scored",
    )

    assert evaluate_champions(params, **asked) == []
    versions.set_alias("stripes", versions.CHAMPION, 1)  # by hand, approved by nobody
    assert evaluate_champions(params, **asked) == []
    approval.approve("disc", by="Ada", reason="good")
    folders = evaluate_champions(params, **asked)
    monkeypatch.setattr("onenip.operation.champion_report.evaluate_test_set", None)
    assert [folder.name for folder in folders] == ["disc"]
    assert evaluate_champions(params, **asked) == folders
    publishing.publish(**options, params={}, facts={"git_commit": "abc"})
    retraining.store_gate(versions.challenger("disc"), PROMOTE)
    report = write_decision_report(**options)

    assert report == find_decision_report(tmp_path / "new")
    text = report.read_text()
    assert "version 1, approved by Ada" in text
    assert "Gate: <b>promote</b>: better." in text
    assert "version 2 (challenger)" in text
    assert text.count("judges every one of these images alike") == 1
    assert "on the 6 images that both have scored" in text.replace("\n", " ")
    assert find_decision_report(tiny_model) is None
    metrics = tmp_path / "scored/metrics.json"
    values = json.loads(metrics.read_text())
    values["images"]["disc"] = {"good": 0, "defective": 0, "without_mask": 0}
    metrics.write_text(json.dumps(values))  # as of a set without test images
    assert evaluate_champions(params, **asked) == []
    assert not folders[0].exists()


def test_a_webhook_gets_a_sentence_and_facts(monkeypatch):
    """A chat shows `text`; a program reads the rest; dead addresses, full disks and bad keys stop nothing."""
    taken: list[dict] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        params = NotifyParams(webhook=f"http://127.0.0.1:{server.server_port}/", timeout_seconds=5)
        told = notify(
            "gate-failed",
            "bottle failed",
            facts={"version": 3},
            params=params,
            memory=Path("/dev/null/notices.json"),
        )
    dead = NotifyParams(webhook="http://127.0.0.1:9/", timeout_seconds=1)
    monkeypatch.setenv("ONENIP_WEBHOOK_SECRET", "whsec_short")
    assert not notify("gate-failed", "cannot be signed", facts={}, params=params)
    monkeypatch.delenv("ONENIP_WEBHOOK_SECRET")

    assert told
    assert taken[0]["text"] == "bottle failed"
    assert taken[0]["version"] == 3
    assert not notify("gate-failed", "nobody hears", facts={}, params=dead)
    assert not notify("gate-failed", "no address", facts={}, params=NotifyParams())


def test_announcing_without_a_server_says_what_to_set(monkeypatch):
    """`onenip notify` needs the address of Prefect's server, and one that answers."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(NoticeError, match="PREFECT_API_URL"):
        emit("onenip.images.arrived", "bottle", payload={})
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(NoticeError, match=r"127\.0\.0\.1:9"):
        emit("onenip.images.arrived", "bottle", payload={})


def write_manifest(path: Path, data: Path, params: Params) -> Path:
    """The manifest of the tiny data, as `validate` would list it."""
    import csv

    from onenip.data.manifest import MANIFEST_COLUMNS

    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, MANIFEST_COLUMNS)
        writer.writeheader()
        for sample in list_samples(data, params):
            row = dict.fromkeys(MANIFEST_COLUMNS, "")
            row |= {"path": sample.name, "category": sample.category, "label": sample.label}
            row |= {"subset": sample.subset, "sha256": sample.sha256, "status": "ok"}
            row["mask"] = sample.mask.relative_to(data).as_posix() if sample.mask else ""
            writer.writerow(row)
    return path
