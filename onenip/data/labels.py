"""What counts as normal, what a kind of defect and a category may be called, and which mask is whose.

The one rule for folders, archives, buckets, tables, the inbox, the registry and the command line.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Literal

from onenip.errors import DataError

GOOD = "good"
# as `_to_word` leaves them, in the singular; `_find_meaning` knows their negations
NORMAL_WORDS = frozenset(
    {"good", "ok", "okay", "normal", "pass", "passed", "io", "inordnung", "gut", "gute", "gutteil",
     "gutteile", "0", "accept", "accepted", "acceptable", "einwandfrei", "conform", "conforming", "intact",
     "clean", "healthy", "nominal", "undamaged", "perfect", "bon", "bonne", "conforme", "bueno", "buena",
     "buono", "goed", "goede", "dobry", "норма", "годен", "良", "良品", "良好", "合格", "合格品", "正常",
     "intakt", "正常品", "ok品", "無欠陥", "異常なし", "양품", "정상"}
)  # fmt: skip
DEFECT_WORDS = frozenset(
    {"ng", "nok", "nio", "ko", "def", "defect", "defective", "bad", "fail", "failed", "failure", "fault",
     "faulty", "1", "anomaly", "anomalie", "anomalous", "abnormal", "reject", "rejected", "scrap", "flaw",
     "flawed", "error", "damage", "damaged", "broken", "kaputt", "schlecht", "schlechte", "schlechtteil",
     "schlechtteile", "defekt", "defekte", "fehler", "mangel", "fehlerhaft", "ausschuss", "mauvais",
     "défaut", "defaut", "défectueux", "rebut", "malo", "mala", "defecto", "difetto", "difettoso",
     "wadliwy", "брак", "不良", "不良品", "不合格", "不合格品", "异常", "異常", "缺陷", "欠陥", "ng品",
     "불량"}
)  # fmt: skip
_UNCLEAR_WORDS = frozenset(
    {"true", "false", "yes", "no", "positive", "negative", "pos", "neg", "wahr", "falsch", "ja", "nein",
     "vrai", "faux", "none", "null", "nan", "na", "unknown", "unlabeled", "unlabelled"}
)  # fmt: skip
UNSORTED = "unsorted"  # shelf folder of arrivals without a category, never a category

_SPLITS = frozenset({"train", "test", "ground_truth", "validation", "training", "testing"})
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names of Windows
_MAX_BYTES = 100  # of a name in UTF-8: it stands in names of files, too
_NOT = re.compile(r"^(without|nicht|ohne|keine?|senza|sans|sin|non|not|no)(?=..)|(free|less|frei)$")
_PARTS = re.compile(r"(parts?|teile?|images?|imgs?|bilder|samples?)$")
_DIGITS = "0123456789"
_FILLERS = re.compile(r"[\s._-]+")
_ZERO_OR_ONE = re.compile(r"([01])[.,]0+")  # as tables write numbers
_WORD = r"\(?(?:masks?|gt|ground[ _-]?truth|labels?|maske|msk|seg|segmentation|anno|annotation)\)?"
_MASK_START = re.compile(rf"^{_WORD}[ _.-]+", re.IGNORECASE)
_NUMBER = r"(?:[ _.-]*\(?\d+\)?)?"  # of one of several masks
_MASK_END = re.compile(
    rf"(?:[ _.-]+(?:defect|anomaly))?(?:[ _.-]+{_WORD}|(?<=\d)masks?){_NUMBER}$", re.IGNORECASE
)
_IMAGE_END = re.compile(r"\.(png|jpe?g|bmp|tiff?|webp)$", re.IGNORECASE)


def clean_name(text: str) -> str:
    """A name as it is kept: in Unicode's NFC, without white space around it and without dots at its end."""
    return unicodedata.normalize("NFC", text).strip().rstrip(". \t")


def is_normal_label(label: str) -> bool:
    """Whether a label says that an image is normal, in any usual word and spelling (`i.O.`, `OK_parts 2`)."""
    return "normal" in (_find_meaning(_to_word(label)), _find_meaning(_bare(label)))


def is_label(word: str) -> bool:
    """Whether a word is a label, of normal images or of defects, so that it names no category.

    So are `NG_2` and `bad parts`; `OK 2` may be a product.
    """
    is_defective = _find_meaning(_bare(word)) == "defective"
    return is_defective or bool(_find_meaning(_to_word(word))) or _is_unclear(word)


def hints_at(name: str) -> Literal["normal", "defective", ""]:
    """What a word within a name says of the images, as in `NG_images` or `ok_front`; empty if nothing."""
    words = {_bare(word) for word in _FILLERS.split(name)}
    if calls_defective(name) or {"no", "not"} & words:
        return "defective"
    return "normal" if "normal" in map(_find_meaning, words) else ""


def calls_defective(name: str) -> bool:
    """Whether a name or a word in it calls images defective: `bottle_NG`, `not OK`; numbers say nothing."""
    words = {_bare(name), *map(_bare, _FILLERS.split(name))}
    return any(_find_meaning(word) == "defective" for word in words)


def clean_label(label: str) -> str:
    """A label as it is kept: `good` for every word for normal, else the kind of defect.

    Raises:
        DataError: if it cannot be the name of a folder, or may mean either, as `true` does.
    """
    if is_normal_label(label):
        return GOOD
    name = clean_name(label)
    problem = _find_folder_problem(name)
    if _is_unclear(label):
        problem = "it does not say which are the normal images; write good, or the kind of defect"
    if problem:
        raise DataError(f"label {label!r}: {problem}")
    return name


def find_category_problem(name: str) -> str:
    """Why a name cannot be that of a category; empty if it can. Spaces, umlauts, # and commas can."""
    name = clean_name(name)
    if is_label(name):
        return "it is a label; name the product"
    if name.casefold() in _SPLITS | {UNSORTED}:
        return "it has a meaning of its own; name the product"
    if name.startswith("-"):
        return "it begins with a dash, as options of commands do"
    return _find_folder_problem(name)


def check_category(name: str) -> str:
    """The name of a category as it is kept.

    Raises:
        DataError: if it cannot be one.
    """
    problem = find_category_problem(name)
    if problem:
        raise DataError(f"category {name!r}: {problem}")
    return clean_name(name)


def find_masked_stem(mask: str, stems: Mapping[str, str], *, own: str = "") -> str:
    """Stem of the image that a mask belongs to, by the mask's name; empty if it is of none of them.

    Understood are `000`, `000_mask`, `000_gt`, `000-label`, `mask_000`, `000.bmp_mask`, `000_mask2` and the
    like, in any case.

    Args:
        mask: name of the mask's file.
        stems: of the images that it may belong to, by `fold`ed name; the same stem goes before one with a
            word taken off.
        own: a stem that is no answer, as that of the file itself.
    """
    stem = PurePosixPath(mask).stem
    bare = _MASK_END.sub("", stem)
    for one in (stem, bare, _MASK_START.sub("", stem), _IMAGE_END.sub("", bare)):
        key = fold(one)
        if key in stems and key != fold(own):
            return stems[key]
    return ""


def strip_mask_word(mask: str) -> str:
    """Stem of a mask's file without a word that says that it is one."""
    stem = PurePosixPath(mask).stem
    bare = _MASK_END.sub("", stem)
    return (bare if bare != stem else _MASK_START.sub("", stem)) or stem


def fold(name: str) -> str:
    """A name as the most forgetful file system sees it."""
    return unicodedata.normalize("NFC", name).casefold()


def _to_word(label: str) -> str:
    """A label in small letters of usual width, without what people put between and around them.

    A number is without decimals, and keeps its signs: `#1` is no label.
    """
    word = unicodedata.normalize("NFKC", label).casefold().strip()
    number = _ZERO_OR_ONE.fullmatch(word)
    bare = re.sub(r"[\W_]+", "", word)
    return number[1] if number else _FILLERS.sub("", word) if bare.isdigit() else bare


def _bare(label: str) -> str:
    """A label as `_to_word` leaves it, without numbers and nouns around it, as in `OK_parts 2`."""
    return _PARTS.sub("", _to_word(label).strip(_DIGITS))


def _find_meaning(word: str) -> Literal["normal", "defective", ""]:
    """What a word of `_to_word` says, also in the plural, and denied: `rejects`, `notgood`, `anomalyfree`."""
    rest = _NOT.sub("", word)
    for one, is_denied in ((word, False), (rest, True)):
        forms = {one, one.removesuffix("s") if len(one) > 4 else one}  # `kos01` is no plural of KO
        if forms & NORMAL_WORDS:
            return "defective" if is_denied else "normal"
        if forms & DEFECT_WORDS:
            return "normal" if is_denied else "defective"
    return ""


def _is_unclear(label: str) -> bool:
    return _to_word(label) in _UNCLEAR_WORDS or label.strip() == "-1"


def _find_folder_problem(name: str) -> str:
    if not name or name in (".", ".."):
        return "it is empty"
    if name.startswith("."):
        return "it begins with a dot"
    if "/" in name or "\\" in name:
        return "it holds a separator of folders"
    if any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in name):
        return "it holds a character that cannot be seen"
    if _RESERVED.fullmatch(name):
        return "it is reserved by Windows"
    if len(name.encode(errors="replace")) > _MAX_BYTES:
        return f"it is longer than {_MAX_BYTES} bytes"
    return ""
