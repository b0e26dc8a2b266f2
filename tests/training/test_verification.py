"""`onenip verify`: the stated figures of a model, recomputed."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from onenip.cli import app
from onenip.data.manifest import select
from onenip.errors import CheckpointError, RegistryError
from onenip.registry import approval
from onenip.registry.publishing import publish
from onenip.training.verification import verify_model
from tests.tiny import (
    change_spec,
    draw_tiny_data,
    fit_tiny,
    list_samples,
    make_tiny_params,
    write_figures,
)


def find_disagreements(findings):
    return [f.fact for f in findings if f.agrees is False]


@pytest.fixture
def copy(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    return tmp_path / "model"


def test_an_honest_model_agrees(tiny_model, tiny_detector):
    """Nothing differs, the digest included."""
    findings = verify_model(tiny_model, expected_digest=tiny_detector.digest)

    assert find_disagreements(findings) == []
    assert any(f.agrees for f in findings)


def test_a_changed_threshold_is_found(copy, tiny_detector):
    """A threshold that does not follow from its normals is named, and the digest differs."""
    change_spec(copy, lambda s: s["categories"]["disc"].update(image_threshold=1.0))

    found = find_disagreements(verify_model(copy, expected_digest=tiny_detector.digest))

    assert found == ["digest", "disc: threshold from its normals"]


def test_changed_scores_of_prompts_are_found(copy):
    """Stored prompts are scored again."""
    change_spec(copy, lambda s: s["categories"]["stripes"].update(prompt_scores=[9.0, 9.0]))

    assert find_disagreements(verify_model(copy)) == ["stripes: scores of its stored prompts"]


def test_the_command_exits_with_one_if_anything_differs(copy):
    """For scripts."""
    change_spec(copy, lambda s: s["categories"]["disc"].update(image_threshold=1.0))

    assert CliRunner().invoke(app, ["verify", str(copy)]).exit_code == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: (m / "model.safetensors").write_bytes(b"\x00" * 40), "damaged"),
        (lambda m: (m / "detector.json").unlink(), "no model here"),
        (lambda m: (m / "detector.json").write_text("{"), "cannot be read"),
        (lambda m: (m / "detector.json").write_text('{"format_version": 9}'), "format version 9"),
        (lambda m: change_spec(m, lambda s: s["model"].update(width=-1)), "model.width"),
        (lambda m: change_spec(m, lambda s: s["model"].update(width=32)), "has shape"),
    ],
    ids=["truncated", "no-spec", "no-json", "newer", "bad-field", "other-architecture"],
)
def test_a_damaged_model_is_one_line(copy, damage, message):
    """Every fault of the files is one clear error, and nothing is executed."""
    damage(copy)

    with pytest.raises(CheckpointError, match=message):
        verify_model(copy)


@pytest.fixture(scope="module")
def traceable(tmp_path_factory):
    """A model that names its calibration images, with these and its synthetic anomalies."""
    folder = tmp_path_factory.mktemp("traceable")
    params = make_tiny_params()
    data = draw_tiny_data(folder / "data", train=24)
    detector = fit_tiny(data, params, folder).detector
    held_out = select(list_samples(data, params), subset="calibration")
    facts = {"calibration_images": {sample.name: sample.sha256 for sample in held_out}}
    detector.spec = detector.spec.model_copy(update={"provenance": facts})
    detector.save(folder / "model")
    return folder


def test_what_rests_on_images_is_recomputed(traceable):
    """Scores, scales, pixel thresholds and the fusion constant follow from the images once more."""
    found = verify_model(
        traceable / "model", data_dir=traceable / "data", synthesis_dir=traceable / "bank"
    )

    agreeing = {finding.fact for finding in found if finding.agrees}
    assert find_disagreements(found) == []
    for what in (
        "scores of its calibration images",
        "scales of its maps",
        "pixel threshold",
        "fusion constant",
        "scores of its synthetic anomalies",
    ):
        assert f"disc: {what}" in agreeing


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"pixel_threshold": 99.0}, ["disc: pixel threshold"]),
        ({"fusion_constant": 99.0}, ["disc: fusion constant"]),
        ({"synthetic_scores": [1.0]}, ["disc: scores of its synthetic anomalies"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_follow_from_the_images_is_named(traceable, tmp_path, change, facts):
    """A number that was changed by hand is found out."""
    shutil.copytree(traceable / "model", tmp_path / "model")
    change_spec(tmp_path / "model", lambda spec: spec["categories"]["disc"].update(change))

    found = verify_model(
        tmp_path / "model", data_dir=traceable / "data", synthesis_dir=traceable / "bank"
    )

    assert set(facts) <= set(find_disagreements(found))


def test_a_changed_calibration_image_is_named(traceable, tmp_path):
    """Other bytes under the same name are reported, not scored."""
    shutil.copytree(traceable / "data", tmp_path / "data")
    spec = json.loads((traceable / "model/detector.json").read_text())
    name = spec["categories"]["disc"]["normal_names"][0]
    (tmp_path / "data" / name).write_bytes(b"other")

    found = verify_model(traceable / "model", data_dir=tmp_path / "data")

    (finding,) = [finding for finding in found if finding.agrees is False]
    assert name in finding.detail


def test_a_registered_version_names_its_approver(tiny_model, tmp_path, monkeypatch):
    """The registry knows who approved which digest; an address that names nothing is one line."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    publish(
        tiny_model,
        evaluation_dir=write_figures(tmp_path / "evaluation", tiny_model),
        params={},
        facts={},
    )
    approval.approve("disc", by="Ada", reason="good")

    shown = CliRunner().invoke(app, ["verify", "models:/onenip-disc@champion"])
    missing = CliRunner().invoke(app, ["verify", "models:/onenip-disc@previous"])

    assert shown.exit_code == 0
    assert "Ada (from the registry)" in shown.output
    assert isinstance(missing.exception, RegistryError)
