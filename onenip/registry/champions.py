"""The champions: detectors of the approved and provisional versions, each model loaded once.

Only what was approved is loaded: a version's approval and the digest of its stored model are
checked first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from onenip.errors import RegistryError
from onenip.registry import store, versions
from onenip.registry.tags import Version
from onenip.registry.versions import Snapshot, approval_command, require_category
from onenip.registry.weights import load_pinned

if TYPE_CHECKING:
    from onenip.detector.detector import Detector
    from onenip.inference.by_category import ServedDetectors


class Champions:
    """The champions of one snapshot of the registry, and their detectors by digest.

    Args:
        snapshot: of the registry; None reads one when it is first asked for.
    """

    def __init__(self, snapshot: Snapshot | None = None) -> None:
        self._snapshot = snapshot
        self._detectors: dict[str, Detector] = {}  # by digest

    @property
    def snapshot(self) -> Snapshot:
        """The registry as all answers here see it.

        Raises:
            RegistryError: if the registry cannot be reached.
        """
        if self._snapshot is None:
            self._snapshot = versions.read_snapshot()
        return self._snapshot

    def version(self, category: str) -> Version | None:
        """The champion of a category, None if none was approved yet.

        Raises:
            RegistryError: if the registry cannot be reached.
        """
        return self.snapshot.standing(category).champion

    def find(self, category: str) -> Detector | None:
        """The champion's detector, None if none was approved yet.

        Raises:
            RegistryError: as for `load`.
        """
        version = self.version(category)
        return None if version is None else self.load(version)

    def find_unified(self) -> Detector | None:
        """The detector that is champion of most categories, None if none is.

        Raises:
            RegistryError: as for `load`.
        """
        version = choose_unified(self.snapshot.champions)
        return None if version is None else self.load(version)

    def load(self, version: Version) -> Detector:
        """The detector of an approved or provisional version, with the threshold that was decided on.

        Versions of the same model share its network.

        Raises:
            RegistryError: if the version is neither, the stored model was changed, or the registry
                cannot be reached.
        """
        check_approval(version)
        if version.digest not in self._detectors:
            self._detectors[version.digest] = load_pinned(version.weights_uri, version.digest)
        detector = self._detectors[version.digest]
        if (
            version.approval == "provisional"
            and not detector.spec.categories[version.category].is_provisional
        ):
            raise RegistryError(
                f"{version.category} version {version.number} was trained and needs approval; it is "
                "not served"
            )
        return apply_threshold(detector, version)

    def keep_only(self, digests: Iterable[str]) -> None:
        """Forget the detectors of all other models."""
        kept = set(digests)
        self._detectors = {d: one for d, one in self._detectors.items() if d in kept}


def load_candidate(version: Version) -> Detector:
    """The detector of any version, approved or not, to look at what it would answer.

    Raises:
        RegistryError: if the stored model was changed, or the registry cannot be reached.
    """
    return apply_threshold(load_pinned(version.weights_uri, version.digest), version)


def apply_threshold(detector: Detector, version: Version) -> Detector:
    """The detector with the threshold that somebody decided on for a version, if anybody did."""
    if version.threshold is None:
        return detector
    return detector.with_threshold(version.category, version.threshold)


def read_serving() -> dict[str, Version]:
    """The champion of each category, else its provisional version; categories with neither are left out.

    Raises:
        RegistryError: if there is no registry, or it cannot be reached.
    """
    store.connect()
    found = {name: one.serving for name, one in versions.read_snapshot().standings.items()}
    return {name: version for name, version in found.items() if version is not None}


def load_all_serving() -> ServedDetectors:
    """Detectors of all categories, each image judged by that of its own.

    Raises:
        RegistryError: if there is none, or as for `Champions.load`.
    """
    from onenip.inference.by_category import ServedDetectors

    champions = Champions()
    detectors = {name: champions.load(version) for name, version in read_serving().items()}
    if not detectors:
        raise RegistryError("no champion of any category; see `onenip status`, or give --model")
    return ServedDetectors(detectors)


def load_champion(category: str) -> tuple[Detector, Version]:
    """The detector that was approved for a category, and the version that says so.

    Raises:
        RegistryError: if the category is unknown, it has no champion, or as for `Champions.load`
            (an alias set by hand counts once `onenip status` recorded it).
    """
    version = versions.champion(category)
    if version is None:
        require_category(category)
        raise RegistryError(
            f"{category}: no champion; see `onenip status`, then `{approval_command(category)}`"
        )
    return Champions().load(version), version


def load_serving(category: str) -> tuple[Detector, Version]:
    """The detector of a category's champion, else of its provisional version.

    Raises:
        RegistryError: if there is neither, or as for `load_champion`.
    """
    version = versions.read_standing(category).serving
    return (Champions().load(version), version) if version else load_champion(category)


def choose_unified(champions: Sequence[Version]) -> Version | None:
    """Of champions, one of the model that serves most categories, the newest of equals."""
    counts = Counter(version.digest for version in champions)
    return max(champions, key=lambda one: (counts[one.digest], one.created_at), default=None)


def check_approval(version: Version) -> None:
    """Make sure that a version may serve.

    Raises:
        RegistryError: if it is neither approved nor provisional, or its digest is not the approved one.
    """
    name = f"{version.category} version {version.number}"
    if version.approval not in ("approved", "provisional"):
        raise RegistryError(f"{name} is {version.approval}, not approved; it is not served")
    if version.approval == "approved" and version.approved_digest != version.digest:
        raise RegistryError(f"{name}: its digest was changed after approval; it is not served")
