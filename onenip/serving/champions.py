"""Which detector answers for which category; follows the registry's champion aliases.

A champion is swapped in whole: a request is answered by the one that it found. If the registry is
down, or a new champion cannot be loaded, the last good one goes on serving, and says so.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from onenip.detector import Detector
from onenip.errors import OneNIPError
from onenip.registry.loading import check_approval, load_version
from onenip.registry.versions import Version, list_categories
from onenip.registry.versions import serving as find_serving

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

    @property
    def built_on(self) -> str:
        """Digest of the trained model that answers, perhaps with categories added to it."""
        return str(self.detector.spec.provenance.get("built_on", self.detector.digest))


class Champions:
    """The champions of all categories, kept up to date by `refresh`.

    Args:
        on_switch: called with what serves now, after each change.
    """

    def __init__(self, on_switch: Callable[[Serving], None] = lambda _: None) -> None:
        self._serving: dict[str, Serving] = {}
        self._on_switch = on_switch
        self._lock = threading.Lock()
        self._follows = True
        self.is_fresh = False
        self.problem = ""

    @classmethod
    def of_folder(cls, folder: Path) -> Champions:
        """Champions that never change: the categories of one model folder.

        Raises:
            CheckpointError: if there is no usable model.
        """
        champions = cls()
        detector = Detector.load(folder)
        champions._serving = {c: Serving(c, detector, 0) for c in detector.categories}
        champions.is_fresh = True
        champions._follows = False
        return champions

    def list_serving(self) -> list[Serving]:
        """What serves, sorted by category."""
        return [self._serving[name] for name in sorted(self._serving)]

    def find(self, category: str) -> Serving | None:
        """What answers for a category, or None."""
        return self._serving.get(category)

    def refresh(self) -> None:
        """Ask the registry once, and load what changed; never raises for want of the registry."""
        if not self._follows:
            return
        with self._lock:
            try:
                found = {name: find_serving(name) for name in list_categories()}
            except OneNIPError as error:
                self.is_fresh = False
                self.problem = f"the registry cannot be asked; the last champions go on: {error}"
                log.warning("%s", self.problem)
                return
            self.is_fresh, self.problem = True, ""
            serving = dict(self._serving)
            for name, version in found.items():
                if version is None:
                    serving.pop(name, None)
                else:
                    self._follow(serving, version)
            self._serving = serving

    def _follow(self, serving: dict[str, Serving], version: Version) -> None:
        """Serve a version, if it is not served already and can be loaded."""
        now = serving.get(version.category)
        if now is not None and now.version == version.number:
            serving[version.category] = replace(now, problem="")
            return
        same = (s.detector for s in serving.values() if s.detector.digest == version.digest)
        try:
            check_approval(version)
            loaded = next(same, None) if version.approval == "approved" else None
            detector = loaded or load_version(version)
        except OneNIPError as error:
            log.error("%s version %d is not served: %s", version.category, version.number, error)
            if now is not None:
                serving[version.category] = replace(now, problem=str(error))
            return
        serving[version.category] = Serving(version.category, detector, version.number)
        log.info("%s: version %d serves", version.category, version.number)
        self._on_switch(serving[version.category])
