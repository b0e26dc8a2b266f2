"""What brings images into the review queue."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO

import numpy as np
import pytest

from onenip.ingestion.journal import Journal
from onenip.review import collecting
from onenip.review.answers import Answers, Feedback, Keeping, new_id
from onenip.review.queue import ReviewQueue
from onenip.review.summary import summarize
from onenip.sources.inbox import FolderInbox


@pytest.fixture
def queue(tmp_path):
    return ReviewQueue(tmp_path / "review")


@pytest.fixture
def served(tiny_data, tiny_detector, tmp_path):
    """Two discs, a good one and one with a spot, as a server keeps them."""
    answers = Answers(tmp_path / "recent")
    for path in (tiny_data / "disc/test/good/000.png", tiny_data / "disc/test/spot/000.png"):
        found = tiny_detector.predict([path], category="disc")[0]
        facts = {"id": new_id(), **found.to_dict(), "version": 1, "digest": tiny_detector.digest}
        is_spot = "spot" in path.parts
        facts |= {"verdict": "anomalous" if is_spot else "normal", "score": 1.1 if is_spot else 0.1}
        answers.keep(facts | {"threshold": 1.0}, path.read_bytes(), found, Keeping(""))
    return answers


def test_alarms_and_feedback_come_once(queue, served, tiny_data):
    """A normal answer is queued only when somebody complains; their opinion waits for a reviewer."""
    miss = served.list_latest()[1].id

    assert collecting.collect_answers(queue, served) == 1
    assert collecting.collect_answers(queue, served) == 0
    served.give_feedback(Feedback(miss, "defect", "Line 3", kind="dent", boxes=[(1, 2, 3, 4)]))
    assert collecting.collect_feedback(queue, served) == 1

    told, alarm = queue.list_items()
    assert (told.reason, told.state, told.verdict) == ("feedback", "open", "normal")
    assert told.image.read_bytes() == (tiny_data / "disc/test/good/000.png").read_bytes()
    assert told.map is not None
    assert (alarm.reason, alarm.source) == ("alarm", f"served:{served.list_latest()[0].id}")
    assert alarm.doubt == pytest.approx(0.9)
    (said,) = queue.history(item=told.id)
    assert (said.role, said.by, said.kind, said.boxes) == (
        "line",
        "Line 3",
        "dent",
        ((1, 2, 3, 4),),
    )


def test_held_arrivals_come_and_go(queue, tiny_data, tmp_path):
    """What is released in another way leaves the queue."""
    (tmp_path / "inbox").mkdir()
    shelf = tmp_path / "inbox-held/disc"
    shelf.mkdir(parents=True)
    (shelf / "a.png").write_bytes((tiny_data / "disc/test/spot/001.png").read_bytes())
    (shelf / "a.png.json").write_text(
        json.dumps({"category": "disc", "reason": "looks odd", "sha256": "x"})
    )
    (shelf / "loose.png").write_bytes(b"x")
    box = FolderInbox(tmp_path / "inbox")

    assert collecting.collect_held(queue, box) == 1
    (item,) = queue.list_items()
    assert (item.detail, item.source) == ("looks odd", "held:disc/a.png")

    box.release("disc/a.png", note={"sha256": "x", "by": "Ada", "reason": "fine"})
    assert collecting.collect_held(queue, box) == 0
    assert queue.list_items() == []
    assert "no longer" in queue.find(item.id).problem


def test_models_that_disagree_and_outliers_are_queued(queue, served, tiny_detector, tiny_data):
    """Champion and challenger differ about an image; a training normal looks unlike the others."""
    never = tiny_detector.with_threshold("disc", 1e9)
    always = tiny_detector.with_threshold("disc", 1e-9)
    values = {"champion": never, "challenger": always, "limit": 1}

    assert collecting.collect_disagreements(queue, served, "disc", **values) == 1
    assert collecting.collect_disagreements(queue, served, "disc", **values) == 0
    assert "champion: normal" in queue.list_items()[0].detail

    spec = tiny_detector.spec.categories["disc"].model_copy(
        update={"outliers": ["disc/train/good/000.png"]}
    )
    whole = tiny_detector.spec.model_copy(
        update={"categories": {**tiny_detector.spec.categories, "disc": spec}}
    )
    odd = replace_spec(tiny_detector, whole)
    assert collecting.collect_outliers(queue, "disc", odd, data_dir=tiny_data) == 1


def replace_spec(detector, spec):
    """The same detector with another description."""
    import copy

    other = copy.copy(detector)
    other.spec = spec
    return other


def test_a_drifting_category_shows_its_least_normal_arrivals(queue, tiny_data, tmp_path):
    """The images are queued, not only a figure."""
    from datetime import UTC, datetime

    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.add(key="a", version="1", size=1, arrived_at=datetime.now(tz=UTC), category="disc")
        (item,) = journal.list_items()
    arrived = [
        replace(item, name=f"disc/train/good/00{number}.png", score=float(number))
        for number in range(3)
    ]

    added = collecting.collect_drift(
        queue, "disc", "scores moved", arrived, count=2, data_dir=tiny_data
    )

    assert added == 2
    assert [i.source for i in queue.list_items()] == [
        "data:disc/train/good/002.png",
        "data:disc/train/good/001.png",
    ]


_DAMAGED_ANSWERS = {
    "category": (5, None, [], "../../evil", "a\x1b[2J", "x" * 300),
    "verdict": (5, None, [], "evil"),
    "score": ("x", None, [], True, float("nan"), float("inf"), 10**400),
    "threshold": ("x", None, float("nan"), float("inf")),
}
_DAMAGED_FEEDBACK = {
    "answer": (5, None, [], "../../../etc/passwd"),
    "at": ("tomorrow", 5, None, "", "0001-01-01", "2026-11-26T10:00:00+14:00"),
    "boxes": (5, [5], ["a"], [["0", "0", "3", "3"]], [[10**300, 0, 1, 1]], [[1, 2, 3]]),
    "by": (5, None, ["x"], "", "\x1b[2J", "x\ny"),
    "kind": (5, None, {}, "../../x"),
    "label": (5, None, [], "good "),
    "mask": (5, [], "AAAA", "!"),
    "note": (5, ["x"], "\x1b]0;x\x07"),
}


def _pack(**arrays):
    packed = BytesIO()
    np.savez_compressed(packed, **arrays)
    return packed.getvalue()


_DAMAGED_MAPS = (
    b"",
    b"junk" * 9,
    _pack(map=np.zeros(4, np.float16), pixel_threshold=1.0),
    _pack(map=np.zeros((4, 4), np.float16), pixel_threshold=np.zeros(3)),
    _pack(map=np.full((4, 4), np.nan, np.float16), pixel_threshold=1.0),
    _pack(map=np.array([["a"]]), pixel_threshold=1.0),
    _pack(map=np.array([{}], dtype=object), pixel_threshold=1.0),
    _pack(map=np.zeros((8000, 8000), np.float16), pixel_threshold=1.0),  # a bomb
)


def test_damaged_answers_feedback_and_maps_stop_no_neighbour(tmp_path, caplog):
    """Values of a wrong type, of no meaning or of another place: left out, and all others are queued."""
    caplog.set_level("CRITICAL")
    root, facts = tmp_path / "recent", {"category": "bottle", "score": 2.5, "threshold": 2.0}
    answers, queue = Answers(root), ReviewQueue(tmp_path / "review")

    def keep():
        name = new_id()
        given = facts | {"id": name, "verdict": "anomalous"}
        answers.keep(given, name.encode(), None, Keeping(""))
        return next(root.glob(f"*/{name}.json"))

    def change(path, key, value):
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    first = keep()
    odd = [(key, value) for key, values in _DAMAGED_ANSWERS.items() for value in values]
    for key, value in odd:
        change(keep(), key, value)
    for content in _DAMAGED_MAPS:
        keep().with_suffix(".npz").write_bytes(content)
    shutil.copy(first, first.with_name("99999999999999999999-aaaaaaaa.json"))  # of another day
    first.with_name(f"{new_id()}.json").symlink_to(f"{new_id()}.json")
    first.with_name(f"{new_id()}.image").mkdir()
    last = keep()
    whole = 2 + len(_DAMAGED_MAPS)

    assert collecting.collect_answers(queue, answers) == whole
    assert len(answers.list_latest()) == whole
    assert queue.read_mark("answers") == last.stem

    answers.give_feedback(Feedback(first.stem, "defect", "Ada"))
    for key, values in _DAMAGED_FEEDBACK.items():
        for value in values:
            answers.give_feedback(Feedback(first.stem, "defect", "Eve"))
            change(max((root / "feedback").iterdir()), key, value)
    answers.give_feedback(Feedback(last.stem, "defect", "Ada"))

    assert collecting.collect_feedback(queue, answers) == 2
    assert [said.by for said in queue.history()] == ["Ada", "Ada"]
    words = summarize(queue, answers, since=datetime.now(tz=UTC) - timedelta(hours=1))
    assert words[1].startswith(f"bottle: {whole} parts, {whole} anomalous, 2 said on the line")
