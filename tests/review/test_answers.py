"""Answers that a server keeps: which, for how long, and where."""

import time
from io import BytesIO

import pytest

from onenip.errors import DataError
from onenip.review.answers import Answers, Feedback, Keeping, is_doubtful, new_id
from onenip.review.marks import load_map

GOOD = {"category": "bottle", "verdict": "normal", "score": 1.0, "threshold": 2.0}
ALARM = GOOD | {"verdict": "anomalous", "score": 2.5}


def keep(answers, facts, keeping, *, age=0.0, content=b"image"):
    """Id of an answer that was given so many seconds ago."""
    name = f"{time.time_ns() - int(age * 1e9):020}-{new_id()[-8:]}"
    answers.keep(facts | {"id": name}, content, None, keeping)
    return name


def test_what_is_kept_follows_the_policy(tmp_path):
    """Clear images stay an hour, in which people may complain; answers and doubts stay their days."""
    policy = Keeping(str(tmp_path), "doubts", sample=0.0, days=2)
    answers = Answers(tmp_path)
    ages = {"new": 60, "hours": 7200, "days": 3 * 86400}
    clear = {name: keep(answers, GOOD, policy, age=age) for name, age in ages.items()}
    alarm = {name: keep(answers, ALARM, policy, age=age) for name, age in ages.items()}

    answers.trim(policy)

    assert {n for n, i in clear.items() if answers.read_image(i)} == {"new"}
    assert {n for n, i in alarm.items() if answers.read_image(i)} == {"new", "hours"}
    assert len(answers.list_latest()) == 4
    assert [a.id for a in answers.list_after(clear["hours"])] == [
        alarm["hours"],
        clear["new"],
        alarm["new"],
    ]
    with pytest.raises(DataError, match="image is not kept"):
        answers.give_feedback(Feedback(clear["hours"], "defect", "Ada"))
    assert is_doubtful(GOOD | {"score": 1.9})
    assert not is_doubtful(GOOD)


def test_room_is_made_from_the_oldest(tmp_path):
    """Never more than so many gigabytes, feedback aside."""
    policy = Keeping(str(tmp_path), gigabytes=25e-6)
    answers = Answers(tmp_path)
    old, new = (keep(answers, GOOD, policy, age=a, content=bytes(15_000)) for a in (50, 10))
    answers.give_feedback(Feedback(old, "unsure", "Ada"))

    answers.trim(policy)

    assert answers.read_image(old) is None
    assert answers.read_image(new)
    assert len(list(answers.take_feedback())) == 1


def test_who_keeps_answers_keeps_to_the_room(tmp_path):
    """However many come at once, and whoever judges, no more than the room and one answer are there."""
    policy = Keeping(str(tmp_path), gigabytes=100e-6)
    answers, sizes = Answers(tmp_path), []
    for age in range(60, 0, -1):
        keep(answers, GOOD, policy, age=age, content=bytes(9_000))
        sizes.append(sum(path.stat().st_size for path in tmp_path.rglob("*.*")))

    assert max(sizes) < 100_000 + 10_000
    assert sizes[-1] > 80_000


@pytest.mark.slow
def test_answers_meet_in_a_bucket(s3_server, monkeypatch):
    """A bucket holds the same as a folder."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    address = f"s3://images/kept-{new_id()}"
    answers, policy = Answers(address), Keeping(address, days=1)
    old, new = (keep(answers, ALARM, policy, age=age) for age in (2 * 86400, 0))
    answers.give_feedback(Feedback(new, "good", "Ada"))

    answers.trim(policy)

    assert [a.id for a in Answers(address).list_latest()] == [new]
    assert answers.read_image(old) is None
    assert answers.read_image(new) == b"image"
    assert [f.by for f in answers.take_feedback()] == ["Ada"]
    assert list(answers.take_feedback()) == []


@pytest.mark.parametrize("content", [b"{}", b"[]", b"[" * 100_000, b"\xff", b"PK\x03\x04junk"])
def test_a_damaged_answer_hides_no_other(tmp_path, content):
    """Answers, feedback and maps that are not what was written are passed over, or said to be none."""
    policy, answers = Keeping(str(tmp_path)), Answers(tmp_path)
    good = keep(answers, ALARM, policy)
    other = keep(answers, GOOD, policy)
    next(tmp_path.glob(f"*/{other}.json")).write_bytes(content)
    answers.give_feedback(Feedback(good, "defect", "Ada"))
    (tmp_path / f"feedback/{new_id()}.json").write_bytes(content)

    assert [one.id for one in answers.list_latest(category="bottle")] == [good]
    assert [one.id for one in answers.list_after("")] == [good]
    assert [one.answer for one in answers.take_feedback()] == [good]
    with pytest.raises(DataError, match="not kept here"):
        answers.find(other)
    with pytest.raises(DataError, match="no map can be read"):
        load_map(BytesIO(content))
