"""Which detectors there are to look with: a folder's, or a category's champion and challenger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onenip.detector import Detector
from onenip.errors import OneNIPError
from onenip.registry.loading import load_version
from onenip.registry.publishing import load_pinned
from onenip.registry.versions import Version, challenger, list_categories, serving

LOCAL_MODEL = Path("artifacts/model")


@dataclass(frozen=True)
class Candidate:
    """A detector to look with.

    Attributes:
        role: champion, provisional, challenger or folder.
        detector: what answers.
        version: in the registry; None for a folder.
    """

    role: str
    detector: Detector
    version: Version | None = None

    @property
    def title(self) -> str:
        """What a person calls it."""
        return self.role if self.version is None else f"{self.role}: version {self.version.number}"


def list_known_categories(folder: Path | None) -> tuple[list[str], str]:
    """Categories to choose from, and what is wrong with the registry, if anything."""
    if folder is not None:
        return list(Detector.load(folder).categories), ""
    try:
        registered = list_categories()
    except OneNIPError as error:
        registered, problem = [], str(error)
    else:
        problem = ""
    if registered or not LOCAL_MODEL.is_dir():
        return registered, problem
    return list(Detector.load(LOCAL_MODEL).categories), problem


def find_candidates(category: str, folder: Path | None) -> list[Candidate]:
    """Detectors for a category: champion or provisional before challenger, else the folder's.

    Raises:
        OneNIPError: if there is none.
    """
    if folder is not None:
        return [Candidate("folder", Detector.load(folder))]
    found = []
    answering, waiting = serving(category), challenger(category)
    if answering is not None:
        role = "provisional" if answering.approval == "provisional" else "champion"
        found.append(Candidate(role, load_version(answering), answering))
    if waiting is not None:
        detector = load_pinned(waiting.weights_uri, waiting.digest)
        found.append(Candidate("challenger", detector, waiting))
    if not found:
        found.append(Candidate("folder", Detector.load(LOCAL_MODEL)))
    return found
