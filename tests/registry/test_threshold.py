"""`onenip threshold`: shown, decided, followed, undone."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from onenip.cli import app
from onenip.detector.operating_points import find_threshold
from onenip.errors import DataError, RegistryError
from onenip.evaluation.counts import VerdictCounts
from onenip.evaluation.results import ImageResult, write_scores
from onenip.operation.threshold_change import choose_value, preview, recount
from onenip.registry import approval, audit, versions
from onenip.registry.champions import load_champion
from onenip.registry.publishing import publish
from tests.tiny import write_figures

WHO = ["--by", "Ada", "--reason", "too many rejects"]


@pytest.fixture
def registry(tiny_model, tiny_detector, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = write_figures(tmp_path / "evaluation", tiny_model)
    now = tiny_detector.spec.categories["disc"].image_threshold
    tested = [
        ImageResult(f"disc/test/{label}/0.png", "disc", label, now + step, now)
        for label, step in (("good", 0.5), ("spot", 2.0))
    ]
    write_scores(folder / "scores.csv", tested)
    publish(tiny_model, evaluation_dir=folder, params={}, facts={})
    approval.approve("disc", by="Ada", reason="good")


@pytest.mark.usefixtures("registry")
def test_a_threshold_is_shown_decided_followed_and_undone(tiny_detector):
    """Nothing is applied unasked; then the champion answers by it, the trail has it, rollback undoes it."""
    spec = tiny_detector.spec
    wanted = find_threshold(spec.categories, "disc", false_alarm_rate=0.3)

    refused = CliRunner().invoke(
        app, ["threshold", "disc", "--false-alarms", "30%", *WHO], input="n\n"
    )
    kept = load_champion("disc")[0].spec.categories["disc"]
    done = CliRunner().invoke(app, ["threshold", "disc", "--false-alarms", "0.3", "--yes", *WHO])
    changed = load_champion("disc")[0].spec.categories["disc"]
    CliRunner().invoke(app, ["rollback", "disc", *WHO])
    restored = load_champion("disc")[0].spec.categories["disc"]

    assert refused.exit_code == 1
    assert "then: threshold" in refused.output
    assert kept == restored == spec.categories["disc"]
    assert done.exit_code == 0, done.output
    assert changed.image_threshold == wanted == changed.operating_point.threshold
    assert [entry.action for entry in audit.read_trail("disc")][-2:] == ["threshold", "rollback"]


def test_what_would_change_is_counted(tiny_detector):
    """Missed defects and false alarms before and after, names of changed images, and recent answers."""
    spec = tiny_detector.spec
    now = spec.categories["disc"].image_threshold
    tested = [
        ImageResult(f"disc/test/{label}/{i}.png", "disc", label, now + step, now)
        for label in ("good", "spot")
        for i, step in enumerate((-2.0, -0.5, 1.0))
    ]

    found = preview(spec, "disc", now - 1, tested=tested, recent_scores=[now, now + 1])

    assert found.tested_before == VerdictCounts(2, 3, 1, 3)
    assert found.tested_after == VerdictCounts(1, 3, 2, 3)
    assert found.changed == ("disc/test/good/1.png", "disc/test/spot/1.png")
    assert found.recent == (2, 1)
    assert any("1 of 2" in line for line in found.describe())


@pytest.mark.usefixtures("registry")
def test_nobody_decides_about_what_they_did_not_see(tiny_detector):
    """Of two people at once the second is refused, for a threshold and for a rollback, and looks again."""
    seen = versions.champion("disc")
    wanted = tiny_detector.spec.categories["disc"].image_threshold + 1
    approval.set_threshold("disc", value=wanted, by="Ada", reason="dust", seen=seen)

    with pytest.raises(RegistryError, match="somebody decided since you looked"):
        approval.set_threshold("disc", value=wanted + 1, by="Bo", reason="noise", seen=seen)
    with pytest.raises(RegistryError, match="somebody decided since you looked"):
        approval.rollback("disc", by="Bo", reason="noise", seen=seen)

    assert versions.champion("disc").threshold == wanted
    back = approval.rollback("disc", by="Bo", reason="noise", seen=versions.champion("disc"))
    assert back.threshold is None


@pytest.mark.usefixtures("registry")
def test_status_counts_at_the_threshold_that_serves(tiny_detector):
    """Verdicts of the stored scores at the decided threshold; those of registration are out of date then."""
    now = tiny_detector.spec.categories["disc"].image_threshold

    approval.set_threshold("disc", value=now + 1, by="Ada", reason="dust")
    after = CliRunner().invoke(app, ["status"]).output
    (counted,) = recount([versions.champion("disc")])

    assert counted.metrics["false_alarms"] == 0
    assert counted.metrics["defective"] == 1
    assert "0 of 1" in after


@pytest.mark.parametrize("given", [{}, {"value": 1.0, "recall": 0.9}])
def test_one_way_to_say_a_threshold(tiny_detector, given):
    """None, or two at once, is refused."""
    asked = {"value": None, "false_alarm_rate": None, "recall": None} | given

    with pytest.raises(DataError, match="give one of"):
        choose_value(tiny_detector.spec, "disc", **asked)
