"""What counts as normal, what a kind of defect and a category may be called, and which mask is whose.

The one rule for folders, archives, buckets, tables, the inbox, the registry and the command line.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

from onenip.errors import DataError

GOOD = "good"
NORMAL_WORDS = frozenset(
    {"good", "goods", "ok", "okay", "normal", "pass", "passed", "io", "gut", "0"}
)
DEFECT_WORDS = frozenset(
    {"ng", "nok", "nio", "not ok", "defect", "defective", "defects", "bad", "fail", "failed", "1",
     "anomaly", "anomalous", "abnormal", "schlecht"}
)  # fmt: skip
UNSORTED = "unsorted"  # shelf folder of arrivals without a category, never a category

_SPLITS = frozenset({"train", "test", "ground_truth", "validation"})
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names of Windows
_MAX_BYTES = 100  # of a name in UTF-8: it stands in names of files, too
_WORD = r"(?:masks?|gt|ground[ _-]?truth|labels?|seg)"
_MASK_START = re.compile(rf"^{_WORD}[ _.-]+", re.IGNORECASE)
_MASK_END = re.compile(rf"[ _.-]+{_WORD}$", re.IGNORECASE)


def clean_name(text: str) -> str:
    """A name as it is kept: in Unicode's NFC, without white space around it and without dots at its end."""
    return unicodedata.normalize("NFC", text).strip().rstrip(". \t")


def is_normal_label(label: str) -> bool:
    """Whether a label says that an image is normal, in any of the usual words."""
    return clean_name(label).casefold() in NORMAL_WORDS


def is_label(word: str) -> bool:
    """Whether a word is a label, of normal images or of defects, so that it names no category."""
    return clean_name(word).casefold() in NORMAL_WORDS | DEFECT_WORDS


def clean_label(label: str) -> str:
    """A label as it is kept: `good` for every word for normal, else the kind of defect.

    Raises:
        DataError: if it cannot be the name of a folder.
    """
    if is_normal_label(label):
        return GOOD
    name = clean_name(label)
    problem = _find_folder_problem(name)
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


def find_masked_stem(mask: str, stems: Iterable[str]) -> str:
    """Stem of the image that a mask belongs to, by the mask's name.

    Understood are `000`, `000_mask`, `000_gt`, `000-label`, `mask_000` and the like, in any case.

    Args:
        mask: name of the mask's file.
        stems: of the images that it may belong to; the same stem goes before one with a word taken off.
    """
    stem = PurePosixPath(mask).stem
    bare, rest = _MASK_END.sub("", stem), _MASK_START.sub("", stem)
    known = set(stems)
    found = next((one for one in (stem, bare, rest) if one in known), "")
    return found or (bare if bare != stem else rest) or stem


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
