"""What is reviewed: candidates for the queue, its items, and the opinions of people about them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from onenip.data.labels import GOOD, clean_label
from onenip.errors import DataError

Reason = Literal["feedback", "disagreement", "near", "held", "outlier", "alarm", "drift"]
Label = Literal["good", "defect", "unsure"]
State = Literal["open", "disputed", "unsure", "decided", "expired"]
WAITING: tuple[State, ...] = ("open", "disputed", "unsure")  # for a person
REASONS: tuple[Reason, ...] = get_args(Reason)  # what helps most first

DEFECT = "defect"  # kind of a defect that nobody named
LINE = "line"  # role of an opinion from the line, which waits for a reviewer
REVIEWER = "reviewer"

_MAX_NAME = 100  # characters
_MAX_NOTE = 2000


@dataclass(frozen=True)
class Candidate:
    """An image that is to be looked at.

    Attributes:
        category: the product category.
        reason: why.
        content: the image file's bytes.
        suffix: of its name, such as `.png`.
        detail: a sentence for the reviewer.
        source: where it comes from, such as `served:ID`, `held:NAME`, `data:PATH`.
        doubt: 0..1, the higher the more a decision helps; orders the items of one reason.
        answer: what the model said, as `Prediction.to_dict` has it with `version` and `digest`; may be empty.
        score_map: [h, w] float32 at the model's input size; None if there is none.
        pixel_threshold: of the map.
        at: when the image was taken or arrived; None: now.
    """

    category: str
    reason: Reason
    content: bytes
    suffix: str
    detail: str = ""
    source: str = ""
    doubt: float = 0.0
    answer: Mapping[str, Any] = field(default_factory=dict)
    score_map: NDArray[np.float32] | None = None
    pixel_threshold: float = 0.0
    at: datetime | None = None


@dataclass(frozen=True)
class Item:
    """An image in the queue.

    Attributes:
        id: 24 hex digits, for addresses.
        category: the product category.
        reason: why a person should look at it; the most helpful one, if there are several.
        doubt: 0..1; orders the items of one reason.
        detail: a sentence for each reason.
        source: where it comes from.
        sha256: of the image file.
        image: the image file.
        map: file of the score map, for `load_map`; None if the model did not look at it.
        answer: what the model said (`score`, `threshold`, `verdict`, `version`, `digest`, ...), or empty.
        at: when the image was taken or arrived, UTC.
        state: open; unsure (looked at, nobody could say); disputed (reviewers disagree); decided;
            expired (nobody looked in time: the image is deleted).
        label: what was decided; empty before.
        kind: of the defect.
        mask: file of the defect's mask, 0/255 PNG at the image's size; None if none was marked.
        place: path below the data root where it was placed, empty before.
        placed: label, kind and mask under which it was placed, joined by `/`; empty before.
        problem: why it could not be placed; else empty.
    """

    id: str
    category: str
    reason: Reason
    doubt: float
    detail: str
    source: str
    sha256: str
    image: Path
    map: Path | None
    answer: dict[str, Any]
    at: datetime
    state: State
    label: Literal["", "good", "defect"]
    kind: str
    mask: Path | None
    place: str
    placed: str
    problem: str

    @property
    def score(self) -> float | None:
        """Image score that the model gave it, if it did."""
        return self.answer.get("score")

    @property
    def threshold(self) -> float | None:
        """Above which the model calls an image anomalous."""
        return self.answer.get("threshold")

    @property
    def verdict(self) -> str:
        """Of the model; empty if it did not look."""
        return str(self.answer.get("verdict", ""))


@dataclass(frozen=True)
class Opinion:
    """What one person said about one item.

    Attributes:
        id: counted from 1.
        item: id of the item.
        role: `reviewer`, or `line` for feedback, which counts only once a reviewer agrees.
        label: good, defect or unsure.
        kind: of the defect.
        mask: file of the mask, or None.
        boxes: (x, y, width, height) in px.
        by: who.
        at: when, UTC.
        note: further words.
        undone_by: who took it back, empty if nobody did.
        undone_at: when, UTC; None if nobody did.
    """

    id: int
    item: str
    role: str
    label: Label
    kind: str
    mask: Path | None
    boxes: tuple[tuple[int, int, int, int], ...]
    by: str
    at: datetime
    note: str
    undone_by: str
    undone_at: datetime | None


def item_id(category: str, sha256: str) -> str:
    """Id of the item of an image."""
    return hashlib.sha256(f"{category}\0{sha256}".encode()).hexdigest()[:24]


def check_person(name: str) -> str:
    """A person's name without space around it.

    Raises:
        DataError: if it is missing or too long.
    """
    name = name.strip()
    if not name or name == "unknown" or len(name) > _MAX_NAME or not name.isprintable():
        raise DataError(f"say who: a name of {_MAX_NAME} characters at most")
    return name


def check_opinion(label: str, *, by: str, kind: str, note: str, is_marked: bool) -> tuple[str, str]:
    """Who says so and the kind of defect, as they are kept; empty for a part that has none.

    Args:
        label: good, defect or unsure.
        by: who says so.
        kind: of the defect; empty: not named.
        note: further words.
        is_marked: whether a mask or boxes say where it is.

    Raises:
        DataError: if they do not go together.
    """
    if label not in get_args(Label):
        raise DataError(f"label {label!r}: good, defect or unsure")
    if label != DEFECT and (kind or is_marked):
        raise DataError(f"a part that is {label} has neither kind nor mask")
    if len(note) > _MAX_NOTE:
        raise DataError(f"note: at most {_MAX_NOTE} characters, not {len(note)}")
    if not "".join(note.split()).isprintable():
        raise DataError("note: no control characters")
    named = clean_label(kind.strip() or DEFECT) if label == DEFECT else ""
    if named == GOOD:
        raise DataError(f"kind {kind!r}: it means normal; name the defect")
    return check_person(by), named
