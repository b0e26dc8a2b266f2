"""The review queue: what comes first, whose word counts, and what is kept."""

import io
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from onenip.cli import app
from onenip.errors import DataError
from onenip.images import load_mask
from onenip.review.items import LINE, Candidate
from onenip.review.marks import load_map
from onenip.review.queue import ReviewQueue


def draw(seed=0, size=(20, 30)):
    """A small PNG file's bytes."""
    rng = np.random.default_rng(seed)
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def queue(tmp_path):
    return ReviewQueue(tmp_path / "review")


def add(queue, seed=0, reason="alarm", **values):
    """The item of a new image."""
    queue.add([Candidate("bottle", reason, draw(seed), ".png", **values)])
    return next(i for i in queue.list_items() if i.image.read_bytes() == draw(seed))


def test_what_helps_most_comes_first_and_an_image_is_one_item(queue):
    """Feedback before alarms, doubt within a reason, the disputed first; a second reason joins the first."""
    clear, close = add(queue, 1, doubt=0.1), add(queue, 2, doubt=0.9, detail="score near threshold")
    told = add(queue, 3, "feedback")
    assert [i.id for i in queue.list_items()] == [told.id, close.id, clear.id]

    new = queue.add(
        [Candidate("bottle", "feedback", draw(1), ".png", detail="a false alarm", doubt=1)]
    )
    queue.decide([close.id], "good", by="Ada")
    queue.decide([close.id], "defect", by="Bo")

    assert new == 0
    assert [i.id for i in queue.list_items()] == [close.id, clear.id, told.id]
    assert queue.find(clear.id).reason == "feedback"
    assert queue.count() == {
        ("bottle", "feedback", "open"): 2,
        ("bottle", "alarm", "disputed"): 1,
    }


def test_reviewers_agree_disagree_and_change_their_minds(queue):
    """The last word of each reviewer counts, a majority settles, and undoing brings the question back."""
    item = add(queue).id
    says = lambda who, label: queue.decide([item], label, by=who)[0].state  # noqa: E731

    assert queue.decide([item], "defect", by="Line 3", role=LINE)[0].state == "open"
    assert says("Ada", "unsure") == "unsure"
    assert says("Ada", "good") == "decided"
    assert says("Bo", "defect") == "disputed"
    assert says("Cy", "defect") == "decided"
    assert queue.find(item).label == "defect"
    assert says("Ada", "defect") == "decided"

    bos = next(o for o in queue.history(item=item) if o.by == "Bo")
    assert queue.undo(bos.id, by="Bo").label == "defect"
    with pytest.raises(DataError, match="taken back before"):
        queue.undo(bos.id, by="Bo")
    history = queue.history(item=item)
    assert [(o.by, o.label) for o in history][-1] == ("Line 3", "defect")
    assert {o.by: o.undone_by for o in history}["Bo"] == "Bo"


def test_a_defect_has_kind_and_mask(queue):
    """Boxes and PNGs become masks at the image's size; the kind is one that a folder can have."""
    item = add(queue).id

    boxed = queue.decide([item], "defect", by="Ada", kind="scratch", boxes=[(2, 3, 4, 5)])[0]
    mask = load_mask(boxed.mask)
    assert boxed.kind == "scratch"
    assert mask.shape == (20, 30)
    assert mask.sum() == 20
    assert mask[3:8, 2:6].all()

    for values, problem in [
        ({"kind": "good"}, "means normal"),
        ({"boxes": [(0, 0, 31, 1)]}, "inside 30x20"),
        ({"mask": np.ones((5, 5), bool)}, "5x5 px, its image 30x20"),
        ({"mask": np.zeros((20, 30), bool)}, "nothing is marked"),
        ({"by": " "}, "say who"),
    ]:
        with pytest.raises(DataError, match=problem):
            queue.decide([item], "defect", **{"by": "Ada", **values})
    assert len(queue.history(item=item)) == 1


def test_many_are_decided_at_once_or_none(queue):
    """One unknown id leaves all as they were."""
    items = [add(queue, seed).id for seed in range(3)]

    with pytest.raises(DataError, match="not in the review queue"):
        queue.decide([*items, "f" * 24], "good", by="Ada")
    assert not queue.history()

    assert {i.state for i in queue.decide(items, "good", by="Ada", note="dust")} == {"decided"}
    assert queue.list_items() == []
    assert {i.id for i in queue.list_unplaced()} == set(items)
    queue.mark_placed(queue.find(items[0]), place="bottle/train/good/x.png")
    assert {i.id for i in queue.list_unplaced()} == set(items[1:])
    queue.undo(queue.history(item=items[0])[0].id, by="Ada")
    assert len(queue.list_unplaced()) == 3


def test_images_go_after_their_time_and_words_stay(queue):
    """What nobody looked at is deleted by age and by room, the least helpful first; decided images stay."""
    values = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    alarm, told = add(queue, 1, score_map=values, pixel_threshold=0.5), add(queue, 2, "feedback")
    decided = add(queue, 3)
    queue.decide([decided.id], "good", by="Ada")
    assert load_map(alarm.map)[1] == 0.5
    size = sum(p.stat().st_size for p in alarm.image.parents[1].rglob("*.*"))

    assert queue.trim(days=1, gigabytes=(size - 10) / 1e9) == 1
    assert queue.find(alarm.id).state == "expired"
    assert not alarm.image.exists()
    assert queue.trim(days=-1, gigabytes=1) == 1
    assert not told.image.exists()
    assert decided.image.exists()
    with pytest.raises(DataError, match="nobody looked in time"):
        queue.decide([told.id], "good", by="Ada")
    assert add(queue, 2).state == "open"  # it came again


def test_what_the_line_said_counts_where_a_reviewer_agrees(queue):
    """A reviewer who confirms takes over kind and mask, unless they give their own; a false alarm is none."""
    item, other = add(queue, 1), add(queue, 2)
    for one in (item, other):
        queue.decide([one.id], "defect", by="Line 3", kind="dent", boxes=[[2, 3, 4, 5]], role=LINE)
    assert queue.find(item.id).state == "open"

    queue.decide([item.id], "defect", by="Ada")
    queue.decide([other.id], "good", by="Ada")

    confirmed = queue.find(item.id)
    assert (confirmed.kind, load_mask(confirmed.mask).sum()) == ("dent", 20)
    assert (queue.find(other.id).kind, queue.find(other.id).mask) == ("", None)
    queue.decide([item.id], "defect", by="Ada", kind="scratch")
    assert queue.find(item.id).kind == "scratch"


def test_wrong_verdicts_that_people_found_are_counted(queue):
    """A part that passed and is defective, an alarm that is good; not what was judged rightly or long ago."""
    now = datetime.now(tz=UTC)
    judged = ["normal defect 0", "anomalous good 0", "normal good 0", "normal defect 40"]
    for seed, (verdict, label, days) in enumerate(one.split() for one in judged):
        item = add(queue, seed, answer={"verdict": verdict}, at=now - timedelta(days=int(days)))
        queue.decide([item.id], label, by="Ada")

    found = queue.count_wrong(since=now - timedelta(days=30))

    assert found == {("bottle", "defect"): 1, ("bottle", "good"): 1}


def test_a_list_says_how_many_it_leaves_out(tmp_path, monkeypatch):
    """Nobody takes the first page of the queue, or of its history, for all of it."""
    monkeypatch.chdir(tmp_path)
    own = ReviewQueue()
    items = [add(own, seed).id for seed in range(4)]
    own.decide(items[:1], "good", by="Ada")
    own.decide(items[:1], "good", by="Bo")

    shown = CliRunner().invoke(app, ["review", "list", "--limit", "1"]).output
    whole = CliRunner().invoke(app, ["review", "list", "--limit", "3"]).output
    said = CliRunner().invoke(app, ["review", "history", "--limit", "1"]).output

    assert "and 2 more: --limit 3" in shown
    assert "more" not in whole
    assert "and earlier ones" in said
