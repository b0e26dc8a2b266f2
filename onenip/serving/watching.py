"""A folder that cameras drop images into, as a source of parts to judge by the champions."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from watchfiles import Change, watch

from onenip.data.labels import clean_name
from onenip.errors import OneNIPError, UnknownCategoryError
from onenip.folders import is_junk
from onenip.images import IMAGE_SUFFIXES, explain_suffix, find_images, load_image
from onenip.review.answers import Answers, Keeping
from onenip.serving.champions import Follower, Roster

_GROWING_SECONDS = 0.3  # a file whose size is the same after so long is complete
_PATIENCE_SECONDS = 30.0
_REMEMBERED = 10_000  # files

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

    A file that is no image gets an answer with `error`; what is none by its name is named in the log.

    Args:
        folder: that is watched.
        champions: asked anew for each image, so that a new champion answers at once.
        category: of all images; None: the name of the folder below `folder` that an image lies in, if it is
            one of the categories, else it is inferred.
        has_existing: whether images that lie there already are judged first.
        keeping: which answers are kept, and where; None keeps none.
        stop: ends it.
    """
    folder = folder.resolve()
    answers = None if keeping is None else Answers(keeping.address)
    judged: dict[str, tuple[int, int]] = {}  # a file is written in several steps, each a change
    changes = watch(folder, stop_event=stop, yield_on_timeout=True, rust_timeout=500, step=50)
    next(changes, None)  # it watches from here on, so that nothing is missed
    for path in find_images(folder)[0] if has_existing else ():
        answer = _judge(path, folder, champions, category, answers, keeping)
        judged[str(path)] = _stamp(path)
        yield answer
    for found in changes:
        for change, name in sorted(found, key=lambda one: one[1]):
            path = Path(name)
            if change is Change.deleted or is_junk(path.relative_to(folder).parts):
                continue
            if path.suffix.lower() not in IMAGE_SUFFIXES:
                if change is Change.added and path.is_file():
                    log.warning("%s: left out: %s", path.name, explain_suffix(path))
                continue
            if judged.get(name) != _stamp(path):
                answer = _judge(path, folder, champions, category, answers, keeping)
                if len(judged) > _REMEMBERED:
                    judged.clear()
                judged[name] = _stamp(path)
                yield answer


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
        _wait_until_complete(path)
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


def _stamp(path: Path) -> tuple[int, int]:
    """What changes with a file's content; of one that is gone, nothing."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
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


def _wait_until_complete(path: Path) -> None:
    """Wait until a file stops growing."""
    size, deadline = -1, time.monotonic() + _PATIENCE_SECONDS
    while size != (now := path.stat().st_size) or not now:
        if time.monotonic() > deadline:
            raise OneNIPError("it is empty, or still growing")
        size = now
        time.sleep(_GROWING_SECONDS)
