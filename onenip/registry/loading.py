"""The champion of a category, ready to answer: what was approved, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onenip.errors import RegistryError
from onenip.registry.publishing import load_pinned
from onenip.registry.versions import Version, champion, serving

if TYPE_CHECKING:
    from onenip.detector import Detector


def load_champion(category: str) -> tuple[Detector, Version]:
    """The detector that was approved for a category, and the version that says so.

    Raises:
        RegistryError: if there is no champion, it was never approved (an alias set by hand counts
            once `onenip reconcile` recorded it), the stored model is not the one that was
            approved, or the registry cannot be reached.
    """
    version = champion(category)
    if version is None:
        raise RegistryError(
            f"{category}: no champion; see `onenip status`, then `onenip approve {category}`"
        )
    return load_version(version), version


def load_serving(category: str) -> tuple[Detector, Version]:
    """The detector that answers for a category: its champion, else its provisional one.

    Raises:
        RegistryError: if there is neither, or as for `load_version`.
    """
    version = serving(category)
    return (load_version(version), version) if version else load_champion(category)


def load_version(version: Version) -> Detector:
    """The detector of an approved or provisional version, if it is still what was stored as such.

    Raises:
        RegistryError: if the version is neither, or the stored model was changed.
    """
    name = f"{version.category} version {version.number}"
    if version.approval == "provisional":
        detector = load_pinned(version.weights_uri, version.digest)
        if not detector.spec.categories[version.category].is_provisional:
            raise RegistryError(f"{name} was trained and needs approval; it is not served")
        return detector
    if version.approval != "approved":
        raise RegistryError(f"{name} is {version.approval}, not approved; it is not served")
    if version.approved_digest != version.digest:
        raise RegistryError(f"{name}: its digest was changed after approval; it is not served")
    return load_pinned(version.weights_uri, version.approved_digest)
