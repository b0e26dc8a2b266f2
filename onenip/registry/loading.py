"""The champion of a category, ready to answer: what was approved, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onenip.errors import RegistryError
from onenip.registry.publishing import load_pinned
from onenip.registry.versions import Version, approval_command, champion, list_categories, serving

if TYPE_CHECKING:
    from onenip.detector.detector import Detector
    from onenip.inference.by_category import ServedDetectors


def load_all_serving() -> ServedDetectors:
    """What serves every category; one detector where several share an approved model.

    Raises:
        RegistryError: if nothing serves, or as for `load_version`.
    """
    from onenip.inference.by_category import ServedDetectors

    detectors: dict[str, Detector] = {}
    approved: dict[str, Detector] = {}  # by digest
    for name in list_categories():
        version = serving(name)
        if version is None:
            continue
        check_approval(version)
        shared = approved.get(version.digest) if version.approval == "approved" else None
        detectors[name] = shared or load_version(version)
        if version.approval == "approved":
            approved[version.digest] = detectors[name]
    if not detectors:
        raise RegistryError("no champion of any category; see `onenip status`, or give --model")
    return ServedDetectors(detectors)


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
            f"{category}: no champion; see `onenip status`, then `{approval_command(category)}`"
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
    check_approval(version)
    detector = load_pinned(version.weights_uri, version.digest)
    if (
        version.approval == "provisional"
        and not detector.spec.categories[version.category].is_provisional
    ):
        raise RegistryError(
            f"{version.category} version {version.number} was trained and needs approval; it is not served"
        )
    return detector


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
