"""A watched folder: each image that appears is judged once, whole."""

import threading
import time

import pytest
from torch.nn.modules.module import register_module_forward_pre_hook

from onenip.detector.detector import Detector
from onenip.errors import OneNIPError, UnknownCategoryError
from onenip.review.answers import Answers, Keeping
from onenip.serving.champions import Follower, Roster, Serving
from onenip.serving.watching import judge_folder, require_category


def test_images_that_appear_are_judged(tiny_model, tiny_data, tiny_detector, tmp_path):
    """What lay there, what comes, what is overwritten and what is no image each get a line."""
    folder, stop = tmp_path / "camera", threading.Event()
    (folder / "disc").mkdir(parents=True)
    source = tiny_data / "disc/test/spot/000.png"
    (folder / "disc/old.png").write_bytes(source.read_bytes())
    answers = judge_folder(
        folder,
        Follower.of_folder(tiny_model),
        category=None,
        has_existing=True,
        keeping=Keeping(str(tmp_path / "kept")),
        stop=stop,
    )

    old = next(answers)
    (folder / "disc/notes.txt").write_text("no image")
    (folder / "disc/.draft.png").write_bytes(b"half")
    (folder / "disc/a new.png").write_bytes(source.read_bytes())
    new = next(answers)
    (folder / "disc/a new.png").write_bytes((tiny_data / "disc/test/good/000.png").read_bytes())
    again = next(answers)
    (folder / "broken.png").write_bytes(b"no image")
    broken = next(answers)
    stop.set()

    assert list(answers) == []
    expected = tiny_detector.predict([source], category="disc")[0].score
    assert [(one["image"], one["score"]) for one in (old, new)] == [
        ("disc/old.png", expected),
        ("disc/a new.png", expected),
    ]
    assert not new["category_inferred"]
    assert broken["image"] == "broken.png"
    assert broken["error"]
    assert (again["image"], again["score"] == expected) == ("disc/a new.png", False)
    assert {a.id for a in Answers(tmp_path / "kept").list_latest()} == {
        one["id"] for one in (old, new, again)
    }


def test_a_model_that_fails_stops_no_other(tiny_model, tiny_data, tiny_detector, tmp_path):
    """An error that nobody foresaw is the answer to its image, and the next one is judged."""
    broken, champions, stop = Detector.load(tiny_model), Follower(), threading.Event()
    broken.folded.to("meta")  # as a device that lost its memory
    champions.roster = Roster(
        {"disc": Serving("disc", broken, 1), "stripes": Serving("stripes", tiny_detector, 1)}
    )
    for name in ("disc", "stripes"):
        (tmp_path / name).mkdir()
        content = (tiny_data / name / "test/good/000.png").read_bytes()
        (tmp_path / name / "part.png").write_bytes(content)
    answers = judge_folder(
        tmp_path, champions, category=None, has_existing=True, keeping=None, stop=stop
    )

    disc, stripes = next(answers), next(answers)
    stop.set()

    assert list(answers) == []
    assert "meta" in disc["error"]
    assert stripes["verdict"]


def test_a_folder_may_go_and_come_back(tiny_model, tiny_data, tmp_path, caplog):
    """A drive that is pulled out is waited for and named; afterwards only what is new is judged."""
    folder, stop = tmp_path / "camera", threading.Event()
    folder.mkdir()
    content = (tiny_data / "disc/test/spot/000.png").read_bytes()
    (folder / "old.png").write_bytes(content)
    champions = Follower.of_folder(tiny_model)
    answers = judge_folder(
        folder, champions, category="disc", has_existing=True, keeping=None, stop=stop
    )

    assert next(answers)["image"] == "old.png"
    folder.rename(tmp_path / "pulled")

    def bring_back():
        while "cannot be listed" not in caplog.text:
            time.sleep(0.05)
        (tmp_path / "pulled/new.png").write_bytes(content)
        (tmp_path / "pulled").rename(folder)

    thread = threading.Thread(target=bring_back, daemon=True)
    thread.start()

    assert next(answers)["image"] == "new.png"
    assert "can be listed again" in caplog.text
    stop.set()
    assert list(answers) == []


def test_an_image_that_is_replaced_while_it_is_judged_is_judged_again(
    tiny_model, tiny_data, tmp_path
):
    """The later content has its own answer, however the two overlap."""
    stop, path = threading.Event(), tmp_path / "part.png"
    first, second = ((tiny_data / f"disc/test/{k}/000.png").read_bytes() for k in ("spot", "good"))
    path.write_bytes(first)
    replaced = [second]

    def replace(*_):
        while replaced:
            path.write_bytes(replaced.pop())

    champions = Follower.of_folder(tiny_model)
    answers = judge_folder(
        tmp_path, champions, category="disc", has_existing=True, keeping=None, stop=stop
    )
    hook = register_module_forward_pre_hook(replace)
    try:
        scores = [next(answers)["score"], next(answers)["score"]]
    finally:
        hook.remove()
        stop.set()

    assert scores[0] != scores[1]


def test_a_category_without_champion_is_named_before_it_starts(tiny_model):
    """Nobody waits for images that cannot be judged."""
    with pytest.raises(UnknownCategoryError, match="served categories: disc, stripes"):
        require_category(Follower.of_folder(tiny_model), "bolt")
    with pytest.raises(OneNIPError, match="not read yet"):
        require_category(Follower(), None)
