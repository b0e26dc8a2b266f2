"""A folder that cameras drop images into, as a source of parts to judge by the champions."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onenip.data.labels import clean_name
from onenip.errors import OneNIPError, UnknownCategoryError
from onenip.images import explain_suffix, find_images, load_image
from onenip.review.answers import Answers, Keeping
from onenip.serving.champions import Follower, Roster

_LOOK_SECONDS = 0.2  # between two looks; longer in a folder that takes long to list
_SHARE = 0.2  # of one processor, for looking
_EMPTY_SECONDS = 30.0  # after which an empty file is not about to be written
_FAILURES = 5  # in a row, to be named
_REMEMBERED = 100_000  # files that are gone, and may come back with a drive

Stamp = tuple[int, int]  # size and time of change

log = logging.getLogger(__name__)


def judge_folder(
    folder: Path,
    champions: Follower,
    *,
    category: str | None,
    has_existing: bool,
    keeping: Keeping | None,
    stop: threading.Event,
) -> Iterator[dict[str, Any]]:
    """An answer to each image that appears in a folder or below, as `POST /predict` gives it, with `image`.

    The folder is listed again and again, and a file is judged once it grows no more: no message of the
    system can be lost, and none is needed, as for a folder on another machine. A file that is no image gets
    an answer with `error`; what is none by its name is named in the log.

    Args:
        folder: that is watched; while it cannot be listed, that is in the log.
        champions: asked anew for each image, so that a new champion answers at once.
        category: of all images; None: the name of the folder below `folder` that an image lies in, if it is
            one of the categories, else it is inferred.
        has_existing: whether images that lie there already are judged first.
        keeping: which answers are kept, and where; None keeps none.
        stop: ends it.
    """
    folder = folder.resolve()
    answers = None if keeping is None else Answers(keeping.address)
    images, others = _list(folder)
    judged = {} if has_existing else dict(images)  # stamps of what was judged
    failures = 0
    while not stop.is_set():
        named, started_at = others, time.monotonic()
        try:
            images, others = _list(folder)
        except OSError as error:  # gone for now; or a folder below it went meanwhile
            failures += 1
            if failures == _FAILURES:
                log.warning("%s cannot be listed, and is tried again: %s", folder, error)
            stop.wait(_LOOK_SECONDS)
            continue
        pause = max(_LOOK_SECONDS, (time.monotonic() - started_at) / _SHARE)
        if failures >= _FAILURES:
            log.warning("%s can be listed again", folder)
        failures = 0
        for path in sorted(others - named):
            log.warning("%s: left out: %s", path.name, explain_suffix(path))
        if len(judged) > 2 * len(images) + _REMEMBERED:
            judged = {path: stamp for path, stamp in judged.items() if path in images}
        fresh = [(path, stamp) for path, stamp in images.items() if judged.get(path) != stamp]
        if fresh:
            stop.wait(_LOOK_SECONDS)  # what grows still has another stamp then
        for path, stamp in fresh:
            if _stamp(path) == stamp and not _is_begun(stamp):
                judged[path] = stamp
                yield _judge(path, folder, champions, category, answers, keeping)
        stop.wait(pause)


def _list(folder: Path) -> tuple[dict[Path, Stamp], set[Path]]:
    """Images below a folder, the oldest first, with their stamps; other files."""
    images, others = find_images(folder)
    stamps = {path: stamp for path in images if (stamp := _stamp(path)) is not None}
    return dict(sorted(stamps.items(), key=lambda one: one[1][1])), set(others)


def _is_begun(stamp: Stamp) -> bool:
    """Whether a file is empty, and perhaps about to be written."""
    size, changed_ns = stamp
    return not size and time.time() - changed_ns / 1e9 < _EMPTY_SECONDS


def _judge(
    path: Path,
    folder: Path,
    champions: Follower,
    category: str | None,
    answers: Answers | None,
    keeping: Keeping | None,
) -> dict[str, Any]:
    roster, name = champions.roster, path.relative_to(folder).as_posix()
    try:
        content = path.read_bytes()
        chosen = category or _find_category(name, roster)
        image = load_image(content, sample_range=roster.model.sample_range(chosen))
        found = roster.model.predict([image], category=chosen)[0]
        answer = roster.describe(found, problem=champions.problem)
    except (OneNIPError, OSError) as error:
        return {"image": name, "error": getattr(error, "reason", str(error))}
    except Exception as error:  # whatever an image does to a model, the next ones are judged
        log.exception("%s: it cannot be judged", name)
        return {"image": name, "error": f"{type(error).__name__}: {error}"}
    try:
        if answers is not None and keeping is not None:
            answers.keep(answer, content, found, keeping)
    except Exception as error:  # the answer counts
        is_expected = isinstance(error, (OneNIPError, OSError))
        log.warning("%s: its answer is not kept: %s", name, error, exc_info=not is_expected)
    return {"image": name, **answer}


def _stamp(path: Path) -> Stamp | None:
    """What changes with a file's content; None of one that is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _find_category(name: str, roster: Roster) -> str | None:
    first, slash, _ = clean_name(name).partition("/")
    return first if slash and first in roster.serving else None


def require_category(champions: Follower, category: str | None) -> None:
    """Make sure that a category has a champion, and that there is any.

    Raises:
        OneNIPError: if not.
    """
    serving = champions.roster.serving
    if not serving:
        raise OneNIPError(champions.problem or "no category has a champion; see `onenip status`")
    if category is not None and category not in serving:
        raise UnknownCategoryError(category, serving, kind="served")
