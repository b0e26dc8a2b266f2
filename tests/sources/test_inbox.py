"""A folder as an inbox: what is seen in it, and where a released image goes."""

import unicodedata

import pytest

from onenip.sources.inbox import FolderInbox
from tests.paths import CASES


def list_keys(box):
    return [arrival.key for arrival in box.list_arrivals()]


def hold(box, arrival, name):
    """Put an arrival onto the shelf of held images."""
    note = {"key": arrival.key, "sha256": "ab12", "reason": "doubtful"}
    box.set_aside(arrival, shelf="held", name=name, note=note)


def test_links_are_followed_and_junk_is_left_out(tmp_path):
    """A linked folder's images arrive; a Mac's and Windows' own files do not."""
    (tmp_path / "camera").mkdir()
    (tmp_path / "camera/0.png").touch()
    inbox = tmp_path / "inbox"
    (inbox / "__MACOSX").mkdir(parents=True)
    for name in ("__MACOSX/._a.png", "Thumbs.db", ".DS_Store"):
        (inbox / name).touch()
    (inbox / "part").symlink_to(tmp_path / "camera")

    assert list_keys(FolderInbox(inbox)) == ["part/0.png"]


@pytest.mark.parametrize(
    "key", ["loose.png", "O-Ring 3,5mm/0.png", "Kunde's Teil/#1.png", "NG/0.png"]
)
def test_a_released_image_goes_back_to_where_it_came_from(tmp_path, key):
    """Also from no folder and from one that names no category: nothing called unsorted comes of it."""
    inbox = tmp_path / "inbox"
    (inbox / key).parent.mkdir(parents=True)
    (inbox / key).write_bytes(b"x")
    box = FolderInbox(inbox)
    hold(box, next(box.list_arrivals()), "unsorted/ab12-0.png")
    assert list_keys(box) == []

    box.release("unsorted/ab12-0.png", note={"sha256": "ab12", "by": "Ada"})

    assert list_keys(box) == [key]
    assert box.is_released("ab12")


@pytest.mark.parametrize("key", ["../outside.png", "/etc/passwd", "..\\x.png", ""])
def test_an_altered_note_moves_nothing_out_of_the_inbox(tmp_path, key):
    """A key that leads out of the inbox is not followed; a newer arrival is not overwritten."""
    inbox = tmp_path / "inbox"
    (inbox / "part").mkdir(parents=True)
    (inbox / "part/0.png").write_bytes(b"x")
    box = FolderInbox(inbox)
    arrival = next(box.list_arrivals())
    box.set_aside(
        arrival, shelf="held", name="part/ab12-0.png", note={"key": key, "sha256": "ab12"}
    )

    box.release("part/ab12-0.png", note={"sha256": "ab12"})

    assert list_keys(box) == ["part/ab12-0.png"]


def test_a_release_overwrites_no_newer_arrival(tmp_path):
    """Where another image lies by now, the released one gets a name of its own."""
    inbox = tmp_path / "inbox"
    (inbox / "part").mkdir(parents=True)
    (inbox / "part/0.png").write_bytes(b"x")
    box = FolderInbox(inbox)
    hold(box, next(box.list_arrivals()), "part/ab12-0.png")
    (inbox / "part/0.png").write_bytes(b"newer")

    box.release("part/ab12-0.png", note={"sha256": "ab12"})

    assert (inbox / "part/0.png").read_bytes() == b"newer"
    assert list_keys(box) == ["part/0.png", "part/ab12-0.png"]


def test_a_category_is_the_same_word_however_it_is_written(tmp_path):
    """A folder as a Mac writes it, or with a space behind, is the category that the data know."""
    names = (CASES / "category-names/names.txt").read_text(encoding="utf-8").splitlines()
    for number, name in enumerate(names):
        folder = tmp_path / "inbox" / (unicodedata.normalize("NFD", name) + " ")
        folder.mkdir(parents=True)
        (folder / f"{number}.png").touch()

    found = {arrival.category for arrival in FolderInbox(tmp_path / "inbox").list_arrivals()}

    assert found == {unicodedata.normalize("NFC", name) for name in names}
