"""Where decided labels go: into training, into the test set, or out of the data."""

import json
import re
import shutil
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onenip.data import dvc, git
from onenip.data.manifest import read_added, scan_layout, select
from onenip.images import load_mask
from onenip.ingestion.reviewed import Defect, place_defects
from onenip.review.collecting import read_file
from onenip.review.items import Candidate
from onenip.review.placing import apply_labels
from onenip.review.queue import ReviewQueue
from onenip.sources.inbox import FolderInbox
from tests.checkouts import drop, make_checkout
from tests.tiny import draw_normal, make_tiny_params, paint_spot


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_checkout(tmp_path_factory.mktemp("checkout") / "template")


@pytest.fixture
def checkout(template, tmp_path):
    return Path(shutil.copytree(template, tmp_path / "checkout", symlinks=True))


def put(queue, path, *, source="served:1", category="disc"):
    """Id of a new item with an image file."""
    one = read_file(path, category, "alarm", "")
    before = {i.id for i in queue.list_items()}
    queue.add([Candidate(category, "alarm", one.content, one.suffix, source=source)])
    return next(i.id for i in queue.list_items() if i.id not in before)


def list_images(checkout, folder):
    return {
        p.relative_to(checkout / "data/disc").as_posix()
        for p in (checkout / "data/disc" / folder).rglob("*.png")
    }


def test_labels_become_a_version_of_the_data(checkout, tmp_path):
    """Normals join training, defects the test set with kind, mask and day; what was trained on never does."""
    queue, rng = ReviewQueue(checkout / "review"), np.random.default_rng(3)
    image, mask = paint_spot(draw_normal("disc", rng), rng)
    defect = put(queue, drop(tmp_path, "defect.png", image))
    normal = put(queue, drop(tmp_path, "normal.png", draw_normal("disc", rng)))
    trained = put(
        queue, checkout / "data/disc/train/good/001.png", source="data:disc/train/good/001.png"
    )
    queue.decide([defect], "defect", kind="dent", mask=mask, by="Ada")
    queue.decide([normal], "good", by="Ada", note="a reflection")
    queue.decide([trained], "defect", by="Bo")
    before = dvc.read_data_version(checkout)

    done = apply_labels(queue, make_tiny_params(), inbox=None, root=checkout)

    items = {item.id: item for item in done.items}
    assert re.fullmatch(r"disc/test/dent/\d{4}-\d\d-\d\d-[0-9a-f]{24}\.png", items[defect].place)
    assert read_added(items[defect].place)
    assert not read_added("disc/test/spot/000.png")
    stem = Path(items[defect].place).stem
    assert (load_mask(checkout / f"data/disc/ground_truth/dent/{stem}_mask.png") == mask).all()
    assert items[normal].place in {f"disc/{n}" for n in list_images(checkout, "train")}
    assert "was trained on" in items[trained].problem
    assert not (checkout / "data/disc/train/good/001.png").exists()
    assert dvc.read_data_version(checkout) != before
    message = git.run(["log", "-1", "--format=%B", done.commit], checkout)
    assert "1 dent of disc" in message
    assert "By Ada, Bo" in message
    assert queue.list_unplaced() == []


def test_undoing_takes_images_out_again_and_another_kind_moves_them(checkout, tmp_path):
    """The data follow the last decision; a training image that turns out a defect is no test image."""
    queue, rng = ReviewQueue(checkout / "review"), np.random.default_rng(4)
    params = make_tiny_params()
    one, other, late = (
        put(queue, drop(tmp_path, f"{n}.png", paint_spot(draw_normal("disc", rng), rng)[0]))
        for n in range(3)
    )
    queue.decide([one, other], "defect", kind="dent", by="Ada", boxes=())
    queue.decide([late], "good", by="Ada")
    apply_labels(queue, params, inbox=None, root=checkout)
    assert len(list_images(checkout, "test/dent")) == 2

    queue.undo(queue.history(item=one)[0].id, by="Ada")
    queue.decide([other], "defect", kind="spot", by="Ada", boxes=[(1, 1, 9, 9)])
    queue.decide([late], "defect", by="Ada")
    done = apply_labels(queue, params, inbox=None, root=checkout)

    assert list_images(checkout, "test/dent") == set()
    assert len(list_images(checkout, "test/spot")) == 3
    places = {item.id: item.place for item in done.items}
    mask = Path(places[other]).stem
    assert (checkout / f"data/disc/ground_truth/spot/{mask}_mask.png").is_file()
    assert places[one] == places[late] == ""
    assert "trained on" in queue.find(late).problem
    assert apply_labels(queue, params, inbox=None, root=checkout).commit is None


@pytest.mark.slow
def test_a_share_of_defects_joins_training_and_each_image_stays_on_its_side(checkout, tmp_path):
    """Those of a day go to one side; what was trained on is no test image, whatever is said later."""
    rng = np.random.default_rng(6)
    mask = drop(tmp_path, "mask.png", paint_spot(draw_normal("disc", rng), rng)[1])
    images = [
        drop(tmp_path, f"{n}.png", paint_spot(draw_normal("disc", rng), rng)[0]) for n in range(5)
    ]

    def place(day, numbers, *, kind="dent", unmarked=(), withdrawn=()):
        found, _ = place_defects(
            make_tiny_params().retrain,
            [
                Defect(str(n), "disc", kind, images[n], None if n in unmarked else mask)
                for n in numbers
            ],
            training_share=0.5,
            withdrawn=withdrawn,
            by=["Ada"],
            today=date(2026, 1, day),
            root=checkout,
        )
        return [found[str(n)] for n in numbers]

    first = place(1, [0, 1])
    second = place(2, [2, 3, 4], unmarked=[4])
    samples = scan_layout(checkout / "data", calibration_fraction=0.3, holdout_fraction=0)
    moved = place(3, [0, 2], kind="spot", withdrawn=[second[1].place])
    again = place(4, [3], unmarked=[3])[0]

    assert all(one.place.startswith("disc/test/dent/2026-01-01") for one in first)
    assert all(one.place.startswith("disc/train/dent/2026-01-02") for one in second[:2])
    assert second[2].place.startswith("disc/test/dent/2026-01-02")
    assert {s.name for s in select(samples, subset="defect")} == {one.place for one in second[:2]}
    assert [one.place.split("/")[1:3] for one in moved] == [["test", "spot"], ["train", "spot"]]
    assert (again.place, "kept out of the test set" in again.remark) == ("", True)
    assert list_images(checkout, "train/dent") == set()
    assert len(list_images(checkout, "train/spot")) == 1


def test_held_images_leave_their_shelf_as_they_were_judged(checkout, tmp_path):
    """A good one goes back to the inbox as looked at, a defect to a shelf of its own and to the test set."""
    inbox, rng = tmp_path / "inbox", np.random.default_rng(5)
    inbox.mkdir()
    box, queue = FolderInbox(inbox), ReviewQueue(checkout / "review")
    ids = {}
    for name in ("good", "defect"):
        path = drop(tmp_path / "inbox-held", f"disc/{name}.png", draw_normal("disc", rng))
        note = {"key": f"disc/{name}.png", "category": "disc", "reason": "looks odd"}
        path.with_name(f"{name}.png.json").write_text(json.dumps(note))
        ids[name] = put(queue, path, source=f"held:disc/{name}.png")
        queue.decide([ids[name]], name, by="Ada")
    served = put(queue, drop(tmp_path, "served.png", draw_normal("disc", rng)))
    queue.decide([served], "good", by="Ada")

    done = apply_labels(queue, make_tiny_params(), inbox=box, root=checkout)

    assert {a.key for a in box.list_arrivals()} == {"disc/good.png", f"disc/{served}.png"}
    assert box.is_released(queue.find(ids["good"]).sha256)
    assert not list(box.list_arrivals(shelf="held"))
    assert (tmp_path / "inbox-defective/disc/defect.png").is_file()
    assert queue.find(ids["defect"]).place.startswith("disc/test/defect/")
    assert done.in_inbox == 2
    queue.undo(queue.history(item=served)[0].id, by="Ada")
    apply_labels(queue, make_tiny_params(), inbox=box, root=checkout)
    assert {a.key for a in box.list_arrivals()} == {"disc/good.png"}
    assert Image.open(inbox / "disc/good.png").size == (64, 64)
