"""Files and folders that change whole or not at all."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from onenip import folders


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def folder(request, tmp_path, monkeypatch):
    """A folder to write, where the system can exchange names and where it cannot."""
    if not request.param:
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    return tmp_path / "deep/out"


def names(folder):
    return [path.name for path in folder.parent.iterdir()]


def test_the_draft_takes_the_folders_place(folder):
    """The first time and again: the new content, and nothing left over."""
    for text in ("first", "second"):
        with folders.replace_folder(folder) as draft:
            (draft / text).touch()
            assert names(draft)[0] != "out" or text == "second"

        assert [path.name for path in folder.iterdir()] == [text]
        assert names(folder) == ["out"]


def test_a_block_that_fails_changes_nothing(folder):
    """The old content stays, without a draft."""
    with folders.replace_folder(folder) as draft:
        (draft / "good").touch()

    with pytest.raises(FileNotFoundError), folders.replace_folder(folder) as draft:
        (draft / "missing").unlink()

    assert [path.name for path in folder.iterdir()] == ["good"]
    assert names(folder) == ["out"]


def test_what_a_kill_left_is_put_right(folder):
    """A draft is thrown away, and a folder that was moved aside comes back."""
    with folders.replace_folder(folder) as draft:
        (draft / "good").touch()
    folder.rename(folder.with_name(".out.previous"))
    folder.with_name(".out.partial").mkdir()

    with pytest.raises(FileNotFoundError), folders.replace_folder(folder) as draft:
        (draft / "missing").unlink()

    assert [path.name for path in folder.iterdir()] == ["good"]
    assert names(folder) == ["out"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_linux_swaps_in_one_step(tmp_path):
    """No moment without the folder: both names change at once."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/new").touch()

    assert folders._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b/new").exists()


def test_a_file_is_replaced_whole(tmp_path):
    """The draft lies beside the file under its suffix, takes its place, and is gone."""
    path = tmp_path / "deep/figures.json"
    for text in ("first", "second"):
        with folders.write_whole(path) as draft:
            draft.write_text(text)
            assert draft.parent == path.parent
            assert draft.suffix == ".json"
            assert not path.exists() or path.read_text() == "first"

        assert path.read_text() == text
        assert names(path) == ["figures.json"]


def test_a_file_that_cannot_be_written_stays(tmp_path):
    """An error in the block, or a draft that was never written, leaves the old file and no draft."""
    path = tmp_path / "figures.json"
    path.write_text("first")

    def fail(draft):
        draft.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), folders.write_whole(path) as draft:
        fail(draft)
    with pytest.raises(FileNotFoundError), folders.write_whole(path) as draft:
        assert not draft.exists()

    assert path.read_text() == "first"
    assert names(path) == ["figures.json"]


def test_threads_write_one_file_side_by_side(tmp_path):
    """Each has its own draft: the file is what one of them wrote, never a mixture."""
    path = tmp_path / "figures.json"

    def write(letter):
        with folders.write_whole(path) as draft:
            draft.write_text(letter * 100_000)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, "abcdefgh" * 4))

    assert path.read_text() in {letter * 100_000 for letter in "abcdefgh"}
    assert names(path) == ["figures.json"]
