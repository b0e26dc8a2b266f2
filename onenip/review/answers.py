"""What the server answered, kept with image and map, and what people on the line say about it.

Kept under one address, a folder or `s3://bucket/prefix`, so that a server and a workspace on different
machines meet there:

    <day>/<id>.json         the answer, kept for `days`
    <day>/<id>.image .npz   the image's bytes as they came, and its map: of answers that the policy keeps
    <day>/<id>.passing-image ...   of the others, for an hour, in which people can still complain
    feedback/<id>.json      what somebody said, until `onenip review` took it into the queue

The first part of an id is the time in ns, so names sort by time. Knows nothing of models.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import random
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, FiniteFloat, TypeAdapter, ValidationError

from onenip.data.labels import find_category_problem
from onenip.detector.prediction import Prediction, Verdict
from onenip.errors import DataError, OneNIPError
from onenip.images import read_size
from onenip.review.items import Label, check_opinion
from onenip.review.marks import draw_marks, load_map, save_map
from onenip.sources.files import Files, open_files

MAX_DAYS = 92  # that an answer can be kept
_PASSING = "passing-"
_PASSING_SECONDS = 3600.0
_TRIM_SECONDS = 300.0  # between two looks at what has no time or room left
_FREED = 0.05  # of the room
_NEAR = 0.9  # of the threshold: a score above it is a near miss
_FEEDBACK = "feedback"
_ID = re.compile(r"[0-9]{20}-[0-9a-f]{8}")  # as `new_id` makes them: such a name leads nowhere else

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keeping:
    """Which answers are kept, where, and for how long.

    Attributes:
        address: folder or `s3://bucket/prefix`.
        which: `all`, or `doubts`: alarms, reviews and near misses.
        sample: share of the others that is kept with `doubts`.
        days: that an answer is kept, at most 92.
        gigabytes: of all; the oldest images go first.
    """

    address: str
    which: Literal["all", "doubts"] = "all"
    sample: float = 0.05
    days: float = 30.0
    gigabytes: float = 5.0


@dataclass(frozen=True)
class Answer:
    """An answer that was kept.

    Attributes:
        id: of the answer.
        facts: as the client got them.
    """

    id: str
    facts: dict[str, Any]

    @property
    def at(self) -> datetime:
        """When it was given, UTC."""
        return datetime.fromtimestamp(_read_seconds(self.id), tz=UTC)

    @property
    def title(self) -> str:
        """Time, category, verdict and score, for a list."""
        facts = self.facts
        return f"{self.at:%H:%M:%S} {facts['category']}: {facts['verdict']} {facts['score']:.2f}"


@dataclass(frozen=True)
class Feedback:
    """What somebody on the line says about an answer.

    Attributes:
        answer: id of the answer.
        label: good, defect or unsure.
        by: who.
        kind: of the defect.
        boxes: (x, y, width, height) in px around the defect.
        mask: PNG of the defect's mask at the image's size, base64; empty: none.
        note: further words.
        at: when, ISO 8601.
    """

    answer: str
    label: Label
    by: str
    kind: str = ""
    boxes: Sequence[Sequence[int]] = ()
    mask: str = ""
    note: str = ""
    at: str = field(default_factory=lambda: datetime.now(tz=UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        try:
            is_utc = datetime.fromisoformat(self.at).utcoffset() == timedelta(0)
        except ValueError:
            is_utc = False
        if not is_utc:
            raise DataError(f"at {self.at[:60]!r}: not a time in UTC, ISO 8601")
        check_opinion(
            self.label, by=self.by, kind=self.kind, note=self.note, is_marked=self.is_marked
        )
        _ = self.mask_bytes

    @property
    def is_marked(self) -> bool:
        """Whether boxes or a mask say where the defect is."""
        return bool(self.mask or self.boxes)

    @property
    def mask_bytes(self) -> bytes | None:
        """The mask's PNG, None without one."""
        try:
            return base64.b64decode(self.mask, validate=True) if self.mask else None
        except ValueError as error:
            raise DataError("mask: not base64") from error


class _Facts(BaseModel):
    """What every answer holds, among other things."""

    category: str
    verdict: Verdict
    score: FiniteFloat
    threshold: FiniteFloat


_FEEDBACK_FILE = TypeAdapter(Feedback)


class Answers:
    """Answers and feedback under one address.

    Args:
        address: folder or `s3://bucket/prefix`.

    Raises:
        SourceError: if the address is neither. Every method: if S3 refuses; OSError if a disk does.
    """

    def __init__(self, address: str | Path) -> None:
        self._files: Files = open_files(address)
        self._trimmed_at, self._room = -math.inf, 0.0  # s of the steady clock, bytes

    def keep(
        self, answer: Mapping[str, Any], content: bytes, found: Prediction | None, keeping: Keeping
    ) -> None:
        """Keep an answer with its image and map; what has no room or time left goes first.

        Args:
            answer: as the client gets it; its `id` is one of `new_id`.
            content: the image file's bytes.
            found: for the map.
            keeping: the policy.
        """
        now = time.monotonic()
        if now - self._trimmed_at > _TRIM_SECONDS or self._room < 0:
            self._trimmed_at = now
            self.trim(keeping)  # before, so that a full disk can become free
        is_kept = keeping.which == "all" or is_doubtful(answer) or random.random() < keeping.sample
        name = f"{_day(answer['id'])}/{answer['id']}"
        mark = "" if is_kept else _PASSING
        parts = {f"{name}.{mark}image": content}
        if found is not None:
            packed = BytesIO()
            save_map(packed, found.input_map, found.pixel_threshold)
            parts[f"{name}.{mark}npz"] = packed.getvalue()
        # last: an answer is complete from the moment that it can be seen
        parts[f"{name}.json"] = json.dumps(dict(answer)).encode()
        for part, packed_bytes in parts.items():
            self._files.write(part, packed_bytes)
            self._room -= len(packed_bytes)

    def list_latest(self, *, category: str | None = None, limit: int = 200) -> list[Answer]:
        """Answers, the latest first; only of a category, if it is given."""
        found: list[Answer] = []
        today = datetime.now(tz=UTC)
        for back in range(MAX_DAYS + 1):
            for name in reversed(self._list_day(today - timedelta(days=back))):
                answer = self._read(name)
                if answer is not None and category in (None, answer.facts["category"]):
                    found.append(answer)
                    if len(found) == limit:
                        return found
        return found

    def list_after(self, last: str) -> Iterator[Answer]:
        """Answers after the one with the id `last`, or all if it is empty, the oldest first."""
        today = datetime.now(tz=UTC)
        for back in reversed(range(MAX_DAYS + 1)):
            day = today - timedelta(days=back)
            if last and f"{day:%Y%m%d}" < _day(last):
                continue
            for name in self._list_day(day):
                answer = self._read(name) if Path(name).stem > last else None
                if answer is not None:
                    yield answer

    def find(self, answer: str) -> Answer:
        """The answer of an id.

        Raises:
            DataError: if there is none, or none any more.
        """
        found = self._read(f"{_day(answer)}/{answer}.json")
        if found is None:
            raise DataError(f"answer {answer}: not kept here, or not any more")
        return found

    def read_image(self, answer: str) -> bytes | None:
        """The image file's bytes as they came; None if it is not kept any more."""
        return self._read_either(answer, "image")

    def read_map(self, answer: str) -> tuple[NDArray[np.float32], float] | None:
        """The map [h, w] float32 at the model's input size and its pixel threshold; None if it is gone."""
        packed = self._read_either(answer, "npz")
        return None if packed is None else load_map(BytesIO(packed))

    def trim(self, keeping: Keeping) -> None:
        """Delete what the policy does not keep, or not any longer, or has no room for.

        What is above the room goes with a twentieth more, so that the next answers find room.
        """
        now = time.time()
        kept = []
        for name, size in self._files.list_names():
            if name.startswith(f"{_FEEDBACK}/"):
                continue
            try:
                age = now - _read_seconds(Path(name).stem)
            except DataError:  # not one of ours
                continue
            is_passing = _PASSING in name and age > _PASSING_SECONDS
            if is_passing or age > keeping.days * 86400:
                self._files.delete(name)
            else:
                kept.append((name, size))
        room = limit = keeping.gigabytes * 1e9
        room -= sum(size for _, size in kept)
        wanted = _FREED * limit if room < 0 else 0.0
        for name, size in kept:
            if room >= wanted:
                break
            self._files.delete(name)
            room += size
        self._room = room

    def give_feedback(self, feedback: Feedback) -> None:
        """Note what somebody says about an answer; `onenip review` takes it into the queue.

        Raises:
            DataError: if the answer's image is not kept any more; MarkError, if boxes or mask do not fit it.
        """
        self.find(feedback.answer)
        image = self.read_image(feedback.answer)
        if image is None:
            raise DataError(f"answer {feedback.answer}: its image is not kept any more")
        if feedback.is_marked:
            draw_marks(feedback.mask_bytes, feedback.boxes, read_size(image))
        content = json.dumps(asdict(feedback), ensure_ascii=False).encode()
        self._files.write(f"{_FEEDBACK}/{new_id()}.json", content)

    def take_feedback(self) -> Iterator[Feedback]:
        """Feedback that nobody took yet, the oldest first; each is gone once the next one is asked for."""
        for name, _ in list(self._files.list_names(_FEEDBACK)):
            content = self._files.read(name)
            if content is None:  # another took it
                continue
            try:
                feedback = _FEEDBACK_FILE.validate_json(content, strict=True)
            except (ValidationError, OneNIPError) as error:
                log.error("feedback %s cannot be read, and stays there: %s", name, error)
                continue
            yield feedback
            self._files.delete(name)

    def _list_day(self, day: datetime) -> list[str]:
        return [n for n, _ in self._files.list_names(f"{day:%Y%m%d}") if n.endswith(".json")]

    def _read(self, name: str) -> Answer | None:
        found = Path(name)
        if not _ID.fullmatch(found.stem) or _day(found.stem) != found.parent.name:
            return None  # not one of ours
        content = self._files.read(name)
        try:
            checked = _Facts.model_validate_json(content or b"", strict=True)
        except ValidationError:
            return None  # there is none, or a damaged one
        is_ours = not find_category_problem(checked.category)
        return Answer(found.stem, json.loads(content or b"")) if is_ours else None

    def _read_either(self, answer: str, suffix: str) -> bytes | None:
        name = f"{_day(answer)}/{answer}"
        content = self._files.read(f"{name}.{suffix}")
        return self._files.read(f"{name}.{_PASSING}{suffix}") if content is None else content


def new_id() -> str:
    """An id for an answer: time and chance, so that servers need not agree."""
    return f"{time.time_ns():020}-{secrets.token_hex(4)}"


def first_id(at: datetime) -> str:
    """The lowest id of an answer of a moment: `list_after` it gives what came since."""
    return f"{int(at.timestamp() * 1e9):020}-00000000"


def is_doubtful(answer: Mapping[str, Any]) -> bool:
    """Whether an answer is an alarm, a review, or a near miss."""
    is_near = answer["score"] > _NEAR * answer["threshold"]
    return answer["verdict"] in ("anomalous", "review") or is_near


def _read_seconds(answer: str) -> float:
    if not _ID.fullmatch(answer):
        raise DataError(f"answer {answer[:60]!r}: not the id of an answer")
    return int(answer[:20]) / 1e9


def _day(answer: str) -> str:
    return f"{datetime.fromtimestamp(_read_seconds(answer), tz=UTC):%Y%m%d}"
