"""What the data was, and what was made of it: versions over time, and the difference of two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

from onenip.data import dvc, git
from onenip.errors import DataError, VersioningError
from onenip.registry.tags import Version
from onenip.registry.versions import list_versions

UNCOMMITTED = "uncommitted"


@dataclass(frozen=True)
class HistoryEntry:
    """One version of the data.

    Attributes:
        commit: Git commit that brought it, 40 hex digits; "" if it is not committed.
        date: of the commit, with its time zone; None if it is not committed.
        subject: of the commit message.
        version: DVC's name of the data.
        images: training and test images per category, without masks; None where DVC's cache lacks the
            list of files.
        models: registered versions that were trained on it, sorted by category and number.
    """

    commit: str
    date: datetime | None
    subject: str
    version: str
    images: dict[str, int] | None
    models: tuple[Version, ...]


@dataclass(frozen=True)
class DataChange:
    """Difference of two versions of the data; paths relative to the data root, sorted.

    Attributes:
        old: version that was compared.
        new: version that it was compared with.
        added: only in the new one, with bytes that the old one has nowhere.
        removed: only in the old one, with bytes that the new one has nowhere.
        changed: in both, with other bytes.
        moved: pairs of old and new path with the same bytes.
    """

    old: str
    new: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    moved: tuple[tuple[str, str], ...]


def list_history(root: Path) -> list[HistoryEntry]:
    """Versions of the data on HEAD and local branches, newest first; one not committed yet leads.

    Raises:
        RegistryError: if the registry cannot be reached.
        VersioningError: if Git refuses.
    """
    models = list_versions()
    revisions = dvc.list_revisions(root)
    entries = [
        _describe(revision.commit, revision.date, revision.subject, revision.version, models, root)
        for revision in revisions
    ]
    present = dvc.read_data_version(root)
    if present is not None and present not in {one.version for one in revisions}:
        entries.insert(0, _describe("", None, UNCOMMITTED, present, models, root))
    return entries


def compare_versions(old: str, new: str | None, *, root: Path) -> DataChange:
    """Which files came, went, changed or moved from one version of the data to another.

    Args:
        old: Git revision, or version of the data as `list_history` names it, or the beginning of one.
        new: the same; None means what `data.dvc` names now.
        root: the checkout.

    Raises:
        DataError: if a name means no version, or several.
        VersioningError: if DVC's cache lacks a list of files.
    """
    known = {entry.version for entry in dvc.list_revisions(root)}
    present = dvc.read_data_version(root)
    known |= {present} - {None}  # type: ignore[arg-type]  # only text is left
    if new is None and present is None:
        raise DataError("data.dvc: no data yet; run `onenip download` first", path=dvc.DATA_POINTER)
    versions = [
        name if name == present else _find_version(name, known, root)
        for name in (old, new or present or "")
    ]
    return compare_files(
        *(dvc.list_files(version, root=root) for version in versions),
        names=(versions[0], versions[1]),
    )


def compare_files(
    before: Mapping[str, str], after: Mapping[str, str], *, names: tuple[str, str]
) -> DataChange:
    """Difference of two lists of files, from path to a hash of the bytes."""
    gone = sorted(before.keys() - after.keys())
    come = sorted(after.keys() - before.keys())
    waiting: dict[str, list[str]] = {}
    for path in gone:
        waiting.setdefault(before[path], []).append(path)
    moved = [(waiting[after[path]].pop(0), path) for path in come if waiting.get(after[path])]
    sources, targets = {pair[0] for pair in moved}, {pair[1] for pair in moved}
    return DataChange(
        *names,
        added=tuple(path for path in come if path not in targets),
        removed=tuple(path for path in gone if path not in sources),
        changed=tuple(sorted(p for p in before.keys() & after.keys() if before[p] != after[p])),
        moved=tuple(sorted(moved)),
    )


def count_images(files: Sequence[str]) -> dict[str, int]:
    """Training and test images per category, sorted by category."""
    parts = [PurePosixPath(path).parts for path in files]
    counts = Counter(p[0] for p in parts if len(p) > 2 and p[1] in ("train", "test"))
    return dict(sorted(counts.items()))


def _describe(
    commit: str,
    date: datetime | None,
    subject: str,
    version: str,
    models: Sequence[Version],
    root: Path,
) -> HistoryEntry:
    try:
        images = count_images(list(dvc.list_files(version, root=root)))
    except VersioningError:
        images = None
    trained = tuple(model for model in models if model.data_version == version)
    return HistoryEntry(commit, date, subject, version, images, trained)


def _find_version(name: str, known: set[str], root: Path) -> str:
    """Version of the data that a user's word means."""
    found = sorted(version for version in known if len(name) >= 4 and version.startswith(name))
    if len(found) == 1:
        return found[0]
    if git.find_commit(name, root=root) is not None:
        return dvc.read_version_at(name, root=root)
    problem = f"means {len(found)} versions" if found else "is no version of the data or of Git"
    raise DataError(f"{name}: {problem}; `onenip data log` lists them")
