"""The champions of all categories, followed in the registry while a server runs.

A champion is swapped in whole: a request is answered by the one that it found. If the registry is down, or a
new champion cannot be loaded, the last good one goes on; a category that is gone from the registry is no
longer served.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onenip.detector.detector import Detector
from onenip.detector.prediction import Prediction
from onenip.errors import OneNIPError, UnreachableError
from onenip.inference.by_category import ServedDetectors
from onenip.registry import store
from onenip.registry.champions import Champions
from onenip.registry.tags import Version
from onenip.registry.versions import Snapshot, read_snapshot
from onenip.review.answers import new_id

_MIN_PATIENCE_SECONDS = 60.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Serving:
    """The champion of a category, loaded.

    Attributes:
        category: the product category.
        detector: its detector.
        version: of `onenip-<category>`; 0 for a model that was given as a folder.
        threshold: that somebody decided on; None where the model's own counts.
        problem: why a newer champion is not served; else empty.
    """

    category: str
    detector: Detector
    version: int
    threshold: float | None = None
    problem: str = ""

    @property
    def is_provisional(self) -> bool:
        """Whether the model was never trained on the category."""
        return self.detector.spec.categories[self.category].is_provisional


class Roster:
    """The champions at one moment, which no later change touches.

    Args:
        serving: by category.
    """

    def __init__(self, serving: Mapping[str, Serving]) -> None:
        self.serving = dict(sorted(serving.items()))
        self.model = ServedDetectors({name: one.detector for name, one in serving.items()})

    def describe(self, found: Prediction, *, problem: str) -> dict[str, Any]:
        """The answer to an image, with an id of its own; `problem` is that of all champions."""
        answering = self.serving[found.category]
        return {
            "id": new_id(),
            **found.to_dict(),
            "version": answering.version,
            "digest": answering.detector.digest,
            "warning": answering.problem or problem,
        }


class Follower:
    """Follows the champion aliases in the registry, in a thread of its own.

    Args:
        patience_seconds: age of the last answer of the registry from which it counts as gone.

    Attributes:
        roster: the champions now; replaced as a whole.
    """

    def __init__(self, *, patience_seconds: float = _MIN_PATIENCE_SECONDS) -> None:
        self.roster = Roster({})
        self._patience_seconds = patience_seconds
        self._champions = Champions()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._follows = True
        self._snapshot: Snapshot | None = None
        self._problem = "the registry was not read yet"

    @classmethod
    def of_folder(cls, folder: Path) -> Follower:
        """Champions that never change: the categories of one model folder.

        Raises:
            CheckpointError: if there is no usable model.
        """
        follower = cls()
        detector = Detector.load(folder)
        follower.roster = Roster({c: Serving(c, detector, 0) for c in detector.categories})
        follower._follows = False
        follower._problem = ""
        return follower

    @property
    def age_seconds(self) -> float | None:
        """Time since the last answer of the registry; None if there was none."""
        return None if self._snapshot is None else self._snapshot.age_seconds

    @property
    def problem(self) -> str:
        """Why the champions may be old; empty if they are not."""
        age = self.age_seconds
        if self._problem or not self._follows or age is None or age <= self._patience_seconds:
            return self._problem
        return f"no answer of the registry for {age:.0f} s; the last champions go on"

    @property
    def is_fresh(self) -> bool:
        """Whether the champions are those of the registry, as far as was heard of late."""
        return not self.problem

    def start(self, seconds: float) -> None:
        """Read the registry now and every so many seconds, until `stop`; never for a folder or 0 s."""
        if self._follows and seconds > 0:
            self._patience_seconds = max(self._patience_seconds, 3 * seconds)
            # a daemon: a registry that hangs does not keep the process from ending
            threading.Thread(target=self._run, args=(seconds,), daemon=True).start()

    def stop(self) -> None:
        """End the thread, once it has heard from the registry."""
        self._stopped.set()

    def refresh(self) -> None:
        """Read the registry once, and load what changed; whatever goes wrong is logged and shown."""
        if not self._follows:
            return
        with self._lock:
            try:
                snapshot = self._read()
            except Exception as error:  # it goes on, whatever a registry answers
                self._problem = (
                    f"the registry cannot be read; the last champions go on: {_describe(error)}"
                )
                log.warning("%s", self._problem, exc_info=not isinstance(error, OneNIPError))
            else:
                self._problem = ""
                self._snapshot = snapshot

    def _run(self, seconds: float) -> None:
        while not self._stopped.is_set():
            self.refresh()
            self._stopped.wait(seconds)

    def _read(self) -> Snapshot:
        """Follow the registry as it is now."""
        store.connect()
        snapshot = read_snapshot()
        serving = {}
        for name, standing in snapshot.standings.items():
            now = self.roster.serving.get(name)
            try:
                found = standing.serving
                one = None if found is None else self._follow(now, found)
            except UnreachableError:
                raise
            except Exception as error:  # of one category; the others go on
                log.error(
                    "%s: its champion is not served: %s",
                    name,
                    error,
                    exc_info=not isinstance(error, OneNIPError),
                )
                one = None if now is None else replace(now, problem=_describe(error))
            if one is not None:
                serving[name] = one
        for name in self.roster.serving.keys() - serving.keys():
            log.warning("%s is no longer served: it has no champion in the registry", name)
        self.roster = Roster(serving)
        self._champions.keep_only(one.detector.digest for one in serving.values())
        return snapshot

    def _follow(self, now: Serving | None, version: Version) -> Serving | None:
        """The version, loaded; the same one as now if it did not change, None if it lost its approval."""
        wanted = (version.number, version.digest, version.threshold)
        if now and (now.version, now.detector.digest, now.threshold) == wanted:
            is_allowed = version.approval in ("approved", "provisional")
            return replace(now, problem="") if is_allowed else None
        detector = self._champions.load(version)
        log.info("%s: version %d is served", version.category, version.number)
        return Serving(version.category, detector, version.number, threshold=version.threshold)


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, OneNIPError) else f"{type(error).__name__}: {error}"
