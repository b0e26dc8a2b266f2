"""Output folders that change whole or not at all."""

import sys

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
