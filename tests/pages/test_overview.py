"""Tiles of the overview: what they count, and which are shown."""

from datetime import UTC, datetime

from mlflow.entities.model_registry import ModelVersion, ModelVersionTag

from onenip.evaluation.results import ImageResult
from onenip.operation.threshold_change import count_again
from onenip.pages.common import plain
from onenip.pages.decide import compare_wrong
from onenip.pages.overview import choose_tiles, make_tiles
from onenip.registry.tags import ThresholdChange, to_tags
from onenip.registry.versions import Standing
from onenip.review.answers import Answer, new_id


def make_standing(category):
    tags = to_tags(digest="d" * 64, weights_uri="", metrics={}, facts={}, approval="approved")
    kept = [ModelVersionTag(*tag) for tag in tags.items()]
    return Standing(category, {"champion": 1}, {}, {1: ModelVersion(category, "1", 0, tags=kept)})


def test_a_hundred_categories_are_counted_filtered_and_sorted():
    """Alarms of late belong to their category; those that wait for somebody, or alarm most, come first."""
    standings = [make_standing(f"part{at:03}") for at in range(100)]
    answers = [
        Answer(new_id(), {"category": "part042", "verdict": verdict, "score": 1.0})
        for verdict in ("anomalous", "normal", "anomalous")
    ]

    waiting = {
        ("part050", "held", "open"): 3000,
        ("part050", "alarm", "unsure"): 1,
        ("part051", "held", "decided"): 5000,
    }
    wrong = {("part050", "defect"): 2}
    drifting = {"part007": "d" * 64, "part008": "e" * 64}
    tiles = make_tiles(standings, answers, waiting, wrong, drifting)

    assert [(t.alarms, t.answers) for t in tiles if t.answers] == [(2, 3)]
    assert [t.standing.category for t in tiles if t.is_drifting] == ["part007"]
    assert choose_tiles(tiles, text="", order="alarms")[0].standing.category == "part042"
    assert choose_tiles(tiles, text="", order="what waits")[0].standing.category == "part050"
    assert [(t.held, t.to_review, t.missed, t.false_alarms) for t in tiles[50:52]] == [
        (3000, 3001, 2, 0),
        (0, 0, 0, 0),
    ]
    assert len(choose_tiles(tiles, text="PART09", order="name")) == 10


def test_wrong_verdicts_are_counted_at_the_threshold_that_was_decided():
    """Figures of verdicts follow the threshold, the others stay; without an evaluation there are none."""
    figures = {"image_auroc": 0.9, "recall": 0.0, "false_alarms": 1.0, "good": 1.0}
    change = ThresholdChange(value=4.0, at=datetime(2026, 11, 26, tzinfo=UTC))
    own = make_standing("part").champion.model_copy(update={"metrics": figures})
    version = own.model_copy(update={"thresholds": (change,)})
    tested = [ImageResult(f"{s}.png", "part", k, s, 4.0) for k, s in (("good", 3.0), ("hole", 5.0))]

    counted, unknown = count_again(version, tested), count_again(version, [])
    (row,) = compare_wrong({"champion 1": counted})

    assert row["false alarms"].startswith("0 of 1 ")
    assert counted.metrics["recall"] == 1.0
    assert counted.metrics["image_auroc"] == unknown.metrics["image_auroc"] == 0.9
    assert compare_wrong({"champion 1": unknown})[0]["false alarms"] == "-"
    assert count_again(own, tested) == own


def test_a_note_draws_no_picture_from_elsewhere():
    """Feedback and names of files are text where Markdown is read: no picture, link, formula or heading."""
    note = "![x](http://evil.example/x.png) [ok](x) $a$ :boom: # Größe → 5"

    assert plain(note) == (
        r"\!\[x\]\(http\:\/\/evil\.example\/x\.png\) \[ok\]\(x\) \$a\$ \:boom\: \# Größe → 5"
    )
