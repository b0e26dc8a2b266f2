"""Output folders that change whole or not at all."""

import sys

import pytest

from onenip import folders


@pytest.mark.parametrize("can_exchange", [True, False])
def test_the_old_folder_stays_until_the_new_one_is_there(tmp_path, monkeypatch, can_exchange):
    """Both ways end alike: the new content, and nothing left over."""
    if not can_exchange:
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    folder, draft = tmp_path / "out", tmp_path / ".out.partial"
    for text in ("first", "second"):
        draft.mkdir()
        (draft / "file").write_text(text)
        folders.replace_folder(folder, draft)

        assert (folder / "file").read_text() == text
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_refused_replacement_changes_nothing(tmp_path, monkeypatch, can_exchange):
    """A draft that is not there leaves the folder as it was."""
    if not can_exchange:
        monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").write_text("good")

    with pytest.raises(OSError, match="partial"):
        folders.replace_folder(tmp_path / "out", tmp_path / ".out.partial")

    assert (tmp_path / "out/file").read_text() == "good"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_linux_swaps_in_one_step(tmp_path):
    """No moment without the folder: both names change at once."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a/new").touch()

    assert folders._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b/new").exists()
