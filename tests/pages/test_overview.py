"""Tiles of the overview: what they count, and which are shown."""

from mlflow.entities.model_registry import ModelVersion, ModelVersionTag

from onenip.evaluation.results import ImageResult
from onenip.pages.common import plain
from onenip.pages.decide import apply_decided, compare_wrong
from onenip.pages.overview import choose_tiles, make_tiles
from onenip.registry.tags import to_tags
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

    tiles = make_tiles(standings, answers, [], {"part007": "d" * 64, "part008": "e" * 64})

    assert [(t.alarms, t.answers) for t in tiles if t.answers] == [(2, 3)]
    assert [t.standing.category for t in tiles if t.is_drifting] == ["part007"]
    assert choose_tiles(tiles, text="", order="alarms")[0].standing.category == "part042"
    assert choose_tiles(tiles, text="", order="what waits")[0].standing.category == "part007"
    assert len(choose_tiles(tiles, text="PART09", order="name")) == 10


def test_wrong_verdicts_are_counted_at_the_threshold_that_was_decided():
    """Decide's table counts as the slider below it does; without an evaluation there is nothing to count."""
    version = make_standing("part").champion
    tested = apply_decided([ImageResult("a.png", "part", "good", 3.0, 2.0)], 4.0)

    (row,) = compare_wrong({"champion 1": version}, {"champion 1": tested})
    (unknown,) = compare_wrong({"champion 1": version}, {"champion 1": []})

    assert row["false alarms"].startswith("0 of 1 ")
    assert unknown["false alarms"] == "-"


def test_a_note_draws_no_picture_from_elsewhere():
    """Feedback and names of files are text where Markdown is read: no picture, link, formula or heading."""
    note = "![x](http://evil.example/x.png) [ok](x) $a$ :boom: # Größe → 5"

    assert plain(note) == (
        r"\!\[x\]\(http\:\/\/evil\.example\/x\.png\) \[ok\]\(x\) \$a\$ \:boom\: \# Größe → 5"
    )
