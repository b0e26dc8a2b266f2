"""The champion of a category, ready to answer: what was approved, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onenip.errors import RegistryError
from onenip.registry.publishing import load_pinned
from onenip.registry.versions import Version, champion

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


def load_version(version: Version) -> Detector:
    """The detector of an approved version, if it is still what was approved.

    Raises:
        RegistryError: if the version is not approved, or the stored model was changed.
    """
    name = f"{version.category} version {version.number}"
    if version.approval != "approved":
        raise RegistryError(f"{name} is {version.approval}, not approved; it is not served")
    if version.approved_digest != version.digest:
        raise RegistryError(f"{name}: its digest was changed after approval; it is not served")
    return load_pinned(version.weights_uri, version.approved_digest)
