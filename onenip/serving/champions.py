"""Which detector answers for which category; follows the registry's champion aliases.

A champion is swapped in whole: a request is answered by the one that it found. If the registry is
down, or a new champion cannot be loaded, the last good one goes on serving, and says so.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from onenip.detector.detector import Detector
from onenip.errors import OneNIPError
from onenip.inference.by_category import ServedDetectors
from onenip.registry.champions import Champions, read_serving
from onenip.registry.versions import Version

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Serving:
    """What answers for a category.

    Attributes:
        category: the product category.
        detector: what answers.
        version: of `onenip-<category>`; 0 for a model that was given as a folder.
        problem: why a newer champion is not served, or the registry cannot be asked; empty if all is well.
    """

    category: str
    detector: Detector
    version: int
    problem: str = ""

    @property
    def is_provisional(self) -> bool:
        """Whether the model was never trained on the category."""
        return self.detector.spec.categories[self.category].is_provisional


class Roster:
    """What serves at one moment, which no later change touches.

    Args:
        serving: by category.
    """

    def __init__(self, serving: Mapping[str, Serving]) -> None:
        self.serving = dict(sorted(serving.items()))
        self.model = ServedDetectors({name: one.detector for name, one in serving.items()})


class Follower:
    """The champions of all categories, kept up to date by `refresh`.

    Args:
        on_switch: called with what serves now, after each change.

    Attributes:
        roster: what serves now; replaced as a whole.
        is_fresh: whether the last look into the registry worked.
        problem: why it did not; else empty.
    """

    def __init__(self, on_switch: Callable[[Serving], None] = lambda _: None) -> None:
        self.roster = Roster({})
        self._on_switch = on_switch
        self._lock = threading.Lock()
        self._champions = Champions()
        self._follows = True
        self.is_fresh = False
        self.problem = ""

    @classmethod
    def of_folder(cls, folder: Path) -> Follower:
        """Champions that never change: the categories of one model folder.

        Raises:
            CheckpointError: if there is no usable model.
        """
        follower = cls()
        detector = Detector.load(folder)
        follower.roster = Roster({c: Serving(c, detector, 0) for c in detector.categories})
        follower.is_fresh = True
        follower._follows = False
        return follower

    def refresh(self) -> None:
        """Ask the registry once, and load what changed; never raises for want of the registry."""
        if not self._follows:
            return
        with self._lock:
            try:
                found = read_serving()
            except OneNIPError as error:
                self.is_fresh = False
                self.problem = f"the registry cannot be asked; the last champions go on: {error}"
                log.warning("%s", self.problem)
                return
            self.is_fresh, self.problem = True, ""
            serving = {name: one for name, one in self.roster.serving.items() if name in found}
            for version in found.values():
                self._follow(serving, version)
            self.roster = Roster(serving)
            self._champions.keep_only(one.detector.digest for one in serving.values())

    def _follow(self, serving: dict[str, Serving], version: Version) -> None:
        """Serve a version, if it is not served already and can be loaded."""
        now = serving.get(version.category)
        if now is not None and now.version == version.number:
            serving[version.category] = replace(now, problem="")
            return
        try:
            detector = self._champions.load(version)
        except OneNIPError as error:
            log.error("%s version %d is not served: %s", version.category, version.number, error)
            if now is not None:
                serving[version.category] = replace(now, problem=str(error))
            return
        serving[version.category] = Serving(version.category, detector, version.number)
        log.info("%s: version %d serves", version.category, version.number)
        self._on_switch(serving[version.category])
