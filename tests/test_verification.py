"""`onenip verify`: what a model says of itself, recomputed."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from onenip.cli import app
from onenip.errors import CheckpointError
from onenip.verification import verify_model


def find_disagreements(findings):
    return [f.fact for f in findings if f.agrees is False]


def change_spec(folder, change):
    path = folder / "detector.json"
    spec = json.loads(path.read_text())
    change(spec)
    path.write_text(json.dumps(spec))


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
        (lambda m: change_spec(m, lambda s: s.update(format_version=9)), "format version 9"),
        (lambda m: change_spec(m, lambda s: s["model"].update(width=-1)), "model.width"),
        (lambda m: change_spec(m, lambda s: s["model"].update(width=32)), "has shape"),
    ],
    ids=["truncated", "no-spec", "no-json", "newer", "bad-field", "other-architecture"],
)
def test_a_damaged_model_is_one_line(copy, damage, message):
    """Whatever is wrong with the files is said, and nothing is executed."""
    damage(copy)

    with pytest.raises(CheckpointError, match=message):
        verify_model(copy)
