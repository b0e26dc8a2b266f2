"""One rule for labels, names of categories and names of masks."""

import unicodedata

import pytest

from onenip.data.labels import (
    check_category,
    clean_label,
    find_category_problem,
    find_masked_stem,
    is_normal_label,
)
from onenip.errors import DataError
from tests.paths import CASES

NAMES = (CASES / "category-names/names.txt").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    "word",
    ["good", "Good", "GOOD ", " ok", "OK", "normal", "goods", "io", "IO", "gut", "pass", "0", "i.O.",
     "i. O.", "O.K.", "no_defect", "defect-free", "0.0", "0,0", "In Ordnung",
     "\uff2f\uff4b", "\uff10", "(ok)", "OK!", '"good"',
     "Gut-Teile", "OK1", "good (2)", "ok_parts", "Normals", "without defects", "not damaged", "anomaly-free",
     "keine Fehler", "good\u200b", "\ufeffgood", "fehlerfrei", "conforme", "良品", "合格", "정상"],
)  # fmt: skip
def test_every_usual_word_for_normal_is_good(word):
    """In any case, with white space around it."""
    assert is_normal_label(word)
    assert clean_label(word) == "good"


@pytest.mark.parametrize("word", ["NG", "nok", "hole", "bad", "1", "fail", "not good", "00"])
def test_other_words_stay_kinds_of_defects(word):
    """What is no word for normal is a defect, under its own name."""
    assert clean_label(word) == word


@pytest.mark.parametrize(
    "word",
    [
        "N.I.O.",
        "n. i. O.",
        "not_ok",
        "NOT-OK",
        "1.0",
        "schlecht",
        "Bad ",
        "\uff2e\uff27",
        "NG?",
        "no good",
        "Non conforme",
        "不良品",
        "불량",
        "K.O.",
        "NG_2",
        "rejects",
        "Schlechtteile",
        "not accepted",
        "NOT-NORMAL",
    ],
)
def test_every_usual_word_for_defects_names_no_category(word):
    """However it is spelt, it is a label of defects."""
    assert not is_normal_label(word)
    assert "label" in find_category_problem(word)


@pytest.mark.parametrize(
    "word", ["True", "false", " yes", "-1", "Positive", "neg.", "WAHR", "None", "#N/A", "nan"]
)
def test_a_word_that_may_mean_either_is_refused(word):
    """Nobody can know whether true says good or defective."""
    with pytest.raises(DataError, match="which are the normal images"):
        clean_label(word)
    assert "label" in find_category_problem(word)


@pytest.mark.parametrize(
    "name", [*NAMES, "a", "Über-Teil (2)", "x.y", "O-Ring 3,5mm", "#1", "No. 1"]
)
def test_names_that_people_give_are_taken(name):
    """Spaces, umlauts, #, % and commas are fine; NFD equals NFC, and space around a name is none of it."""
    assert find_category_problem(name) == ""
    assert check_category(f" {unicodedata.normalize('NFD', name)}. ") == unicodedata.normalize(
        "NFC", name
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"), (" -x", "dash"), (" . ", "empty"), ("..", "empty"), (".git", "begins with a dot"),
        ("a/b", "separator"), ("a\\b", "separator"), ("a\x00b", "cannot be seen"),
        ("a\u2028b", "cannot be seen"), ("a\u202eb", "cannot be seen"), ("CON", "reserved"),
        ("nul.txt", "reserved"), ("x" * 101, "longer than"), ("NG", "label"), ("Gut", "label"),
        ("1", "label"), ("unsorted", "meaning of its own"), ("Train", "meaning of its own"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_category_says_why(name, reason):
    """Labels, words with a meaning of their own, and what no folder or file can be called."""
    assert reason in find_category_problem(name)
    with pytest.raises(DataError, match=reason):
        check_category(name)


@pytest.mark.parametrize(
    "mask",
    ["000.png", "000_mask.png", "000_MASK.PNG", "000_gt.png", "mask_000.png", "000-label.tif",
     "000_ground_truth.png", "000 mask.png", "000_segmentation.png", "000.mask.png",
     "000.bmp_mask.png", "000 (mask).png"],
)  # fmt: skip
def test_a_mask_is_found_by_any_usual_name(mask):
    """A word before or behind the image's own name, in any case."""
    assert find_masked_stem(mask, {"000": "000", "001": "001"}) == "000"
    assert find_masked_stem("seg_1_mask.png", {"seg_1": "seg_1"}) == "seg_1"
    assert (
        find_masked_stem("Bu\u0308CHSE_mask.png", {"b\u00fcchse": "B\u00fcchse"}) == "B\u00fcchse"
    )
