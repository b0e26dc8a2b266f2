"""Brand-new categories: usable at once by their prompts, marked as provisional, until one is approved."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from typer.testing import CliRunner

from onenip import Detector
from onenip.cli import app
from onenip.data.manifest import MANIFEST_COLUMNS
from onenip.data.outputs import Outputs
from onenip.errors import RegistryError
from onenip.images import hash_file
from onenip.operation import provisional
from onenip.registry import approval, audit, versions
from onenip.registry.champions import Champions, load_serving
from onenip.registry.publishing import publish
from onenip.serving.champions import Follower
from onenip.serving.web import ServeSettings, build_app
from tests.tiny import CATEGORIES, draw_normal, fit_tiny, make_tiny_params, write_figures


def draw_bolt(seed: int) -> np.ndarray:
    """A normal image of a product that nobody trained on, [64, 64, 3] uint8."""
    return draw_normal("stripes", np.random.default_rng(seed)).transpose(1, 0, 2)[:, :, ::-1].copy()


def put_bolts(root, count):
    folder = root / "data/bolt/train/good"
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count):
        Image.fromarray(draw_bolt(seed)).save(folder / f"{seed}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def plant(tmp_path, tiny_data, tiny_model, monkeypatch):
    """A checkout in which the tiny model serves both of its categories."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    shutil.copytree(tiny_data, tmp_path / "data")
    publish_model(tiny_model, tmp_path)
    for name in CATEGORIES:
        approval.approve(name, by="Ada", reason="good")
    return tmp_path


def publish_model(folder, root):
    """Register a model that was trained, with figures."""
    evaluation = write_figures(root / "evaluation", folder, categories=(*CATEGORIES, "bolt"))
    return publish(folder, evaluation_dir=evaluation, params={}, facts={})


def test_first_images_make_the_serving_model_usable_and_marked(plant, tiny_detector):
    """The champion's own network answers for the new category; everybody is told what that is worth."""
    image = put_bolts(plant, 2)[0]
    params = make_tiny_params()

    (version,) = provisional.provide(params, root=plant)

    assert (version.category, version.approval) == ("bolt", "provisional")
    assert versions.champion("bolt") is None
    assert provisional.provide(params, root=plant) == []
    said = CliRunner().invoke(app, ["predict", str(image), "--category", "bolt"])
    answer = json.loads(said.stdout.splitlines()[-1])
    assert (answer["category"], answer["provisional"]) == ("bolt", True)
    assert "provisional" in CliRunner().invoke(app, ["status"]).stdout
    detector, _ = load_serving("bolt")
    disc = next((plant / "data/disc/test/spot").iterdir())
    found = [d.predict([disc], category="disc")[0] for d in (detector, tiny_detector)]
    assert found[0].score == found[1].score
    assert not found[0].is_provisional
    entry = audit.read_trail("bolt")[-1]
    assert (entry.action, entry.champion) == ("provisional", 0)
    assert "from 2 normal images" in entry.reason


def test_one_corrupt_image_stops_nobody(plant):
    """It is left out; the other images of its category, and other categories, count."""
    paths = put_bolts(plant, 2)
    paths[0].write_bytes(b"no image")

    (version,) = provisional.provide(make_tiny_params(), root=plant)

    assert version.category == "bolt"
    assert "from 1 normal images" in audit.read_trail("bolt")[-1].reason


def test_what_the_manifest_leaves_out_stays_out(plant):
    """An image that validation put aside, is none of a new category's first images."""
    row = {"path": "bolt/old-name.png", "sha256": hash_file(put_bolts(plant, 3)[0])}
    manifest = Outputs(plant).manifest
    manifest.parent.mkdir(parents=True)
    with manifest.open("w", newline="") as file:
        writer = csv.DictWriter(file, MANIFEST_COLUMNS)
        writer.writeheader()
        writer.writerow({**row, "status": "quarantined", "reason": "too dark"})

    provisional.provide(make_tiny_params(), root=plant)

    assert "from 2 normal images" in audit.read_trail("bolt")[-1].reason


def test_more_images_make_a_better_stand_in(plant):
    """Each delivery, or another range of samples, gives a new provisional version; nobody is asked."""
    put_bolts(plant, 1)
    params = make_tiny_params()
    (first,) = provisional.provide(params, root=plant)
    put_bolts(plant, 3)

    (second,) = provisional.provide(params, root=plant)

    assert second.number == first.number + 1
    assert versions.provisional("bolt").number == second.number
    with pytest.raises(RegistryError, match="is provisional"):
        approval.approve("bolt", by="Ada", reason="hurry", version=second.number)
    with pytest.raises(RegistryError, match="no challenger waits"):
        approval.approve("bolt", by="Ada", reason="hurry")
    declared = make_tiny_params(data={"sample_ranges": {"bolt": [0, 128]}})
    assert len(provisional.provide(declared, root=plant)) == 1
    assert provisional.provide(declared, root=plant) == []


def test_the_server_answers_for_it_and_still_tells_categories(plant, tiny_detector):
    """A provisional category costs the others nothing: same version, same score, category still told."""
    image = put_bolts(plant, 2)[0]
    provisional.provide(make_tiny_params(), root=plant)
    champions = Follower()
    champions.refresh()
    disc = next((plant / "data/disc/test/good").iterdir())
    with TestClient(build_app(champions, ServeSettings(refresh_seconds=0))) as client:

        def ask(path, **data):
            files = {"file": path.read_bytes()}
            return client.post("/predict/file", files=files, data=data).json()

        new, told, known = ask(image, category="bolt"), ask(image), ask(disc)
        listed = {row["category"]: row["provisional"] for row in client.get("/categories").json()}

    assert new["provisional"]
    assert told["category"] == "bolt"
    assert (known["category"], known["provisional"]) == ("disc", False)
    assert known["digest"] == tiny_detector.digest
    assert known["score"] == tiny_detector.predict([disc], category="disc")[0].score
    assert listed == {"bolt": True, "disc": False, "stripes": False}


def test_an_approved_model_takes_its_place(plant, tiny_detector):
    """A trained challenger waits beside it; approved, it answers, and the stand-in is gone."""
    paths = put_bolts(plant, 2)
    provisional.provide(make_tiny_params(), root=plant)
    trained = tiny_detector.add_category("bolt", paths)
    known = trained.spec.categories["bolt"].model_copy(update={"is_provisional": False})
    categories = {**trained.spec.categories, "bolt": known}
    trained.spec = trained.spec.model_copy(update={"categories": categories})
    trained.save(plant / "trained")
    publish_model(plant / "trained", plant)
    assert versions.challenger("bolt").number == 2
    assert load_serving("bolt")[1].number == 1

    approval.approve("bolt", by="Ada", reason="trained now")

    assert load_serving("bolt")[1].number == 2
    assert versions.provisional("bolt") is None
    assert not load_serving("bolt")[0].predict([paths[0]], category="bolt")[0].is_provisional
    assert provisional.provide(make_tiny_params(), root=plant) == []


def test_a_trained_model_is_not_let_in_as_provisional(plant, tiny_model):
    """Whoever tags a waiting version as provisional by hand does not get past approval."""
    detector = Detector.load(tiny_model)
    detector.spec = detector.spec.model_copy(update={"provenance": {"number": 2}})
    detector.save(plant / "other")
    waiting = publish_model(plant / "other", plant)[0]
    versions.set_tags(waiting.category, waiting.number, {"approval": "provisional"})

    with pytest.raises(RegistryError, match="needs approval"):
        Champions().load(versions.find_version(waiting.category, waiting.number))


def test_without_a_champion_there_is_nothing_to_stand_in(tmp_path, monkeypatch):
    """An empty registry: no provisional model, and no error."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    put_bolts(tmp_path, 1)

    assert provisional.provide(make_tiny_params(), root=tmp_path) == []


def test_a_category_of_one_image_can_be_trained(tmp_path, tiny_data):
    """Even if its hash keeps the image for calibration: one newcomer must not stop everybody's training."""
    shutil.copytree(tiny_data, tmp_path / "data")
    put_bolts(tmp_path, 1)
    params = make_tiny_params(data={"calibration_fraction": 0.99})

    found = fit_tiny(tmp_path / "data", params, tmp_path)

    assert not found.detector.spec.categories["bolt"].is_provisional
