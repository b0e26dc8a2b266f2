"""Bring images into the data set: fetched, checked, moved in at once, versioned."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onenip.data import dvc, git
from onenip.data.labels import fold
from onenip.data.outputs import OUTPUTS
from onenip.errors import SourceError
from onenip.folders import write_whole
from onenip.params import Params
from onenip.sources.catalog import CATALOG
from onenip.sources.items import Fetched, Limits, Source, Workspace, read_record
from onenip.sources.layout import check_clashes
from onenip.sources.resolving import resolve_source
from onenip.sources.staging import StagedFile, Staging, explain_disk_errors

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DownloadResult:
    """What a download did.

    Attributes:
        is_changed: whether the data set became another.
        categories: files in each category.
        bytes: of the whole data set.
        version: DVC's name of the data set; None where nothing is versioned.
    """

    is_changed: bool
    categories: dict[str, int]
    bytes: int
    version: str | None


def run(
    params: Params,
    *,
    sources: Sequence[str],
    data_dir: Path,
    record: Path = OUTPUTS.download_record,
    accept_license: bool = False,
    endpoint_url: str | None = None,
    sign_request: bool = True,
) -> DownloadResult:
    """Make the data set exactly what the sources name.

    A texture source (`dtd`) goes to `download.textures` instead. On any failure the data set and `data.dvc`
    stay as they were; what was fetched is kept for the next attempt.

    Args:
        params: everything of `params.yaml`.
        sources: as `onenip.sources.resolving.resolve_source` takes them.
        data_dir: the data set.
        record: JSON file for origin, licence and checksum of every file.
        accept_license: the user accepts licences that need it.
        endpoint_url: of S3, if not AWS.
        sign_request: False reads public buckets without credentials.

    Raises:
        SourceError: if a source cannot be read completely, is unsafe, or clashes with another.
        BusyError: if another command is at work in the checkout of the data set.
    """
    if not sources:
        raise SourceError("nothing to download: name a --source, such as --source demo")
    resolved = [
        resolve_source(
            name,
            seed=params.seed,
            urls=params.download.urls,
            has_consent=accept_license,
            endpoint_url=endpoint_url,
            sign=sign_request,
        )
        for name in dict.fromkeys(sources)
    ]
    textures = [s for s in resolved if s.name in CATALOG and CATALOG[s.name].is_texture]
    images = [source for source in resolved if source not in textures]
    result = None
    with explain_disk_errors():
        if textures:
            folder = Path(params.download.textures)
            result = _replace(params, textures, folder, record.with_name("textures.json"))
        if images:
            result = _replace(params, images, data_dir, record)
    assert result is not None
    return result


def _replace(
    params: Params, sources: Sequence[Source], data_dir: Path, record_path: Path
) -> DownloadResult:
    pointer = data_dir.with_name(data_dir.name + ".dvc")
    staging = Staging(data_dir, pointer=pointer)
    with staging.locked():
        record = read_record(record_path)
        limits = Limits(
            total_bytes=int(params.download.max_unpacked_gib * 2**30),
            ratio=params.download.max_unpacked_ratio,
        )
        workspace = Workspace(
            staging.downloads, staging.data_dir, record, params.download.workers, limits
        )
        fetched = [_fetch(source, workspace) for source in sources]
        _check_categories(fetched)
        items = [item for one in fetched for item in one.items]
        check_clashes([item.target for item in items], "sources")
        staged = staging.stage(items)
        is_changed = not staging.is_unchanged(staged)
        recorded = record.get("version")
        if is_changed:
            with staging.swapped():
                version = _version(data_dir)
        elif recorded is not None and recorded == _read_version(data_dir):
            version = recorded
        else:
            version = _version(data_dir)
        _write_record(record_path, fetched, staged, version)
        staging.clear()
    categories = Counter(target.split("/")[0] for target in staged)
    result = DownloadResult(
        is_changed, dict(sorted(categories.items())), sum(f.bytes for f in staged.values()), version
    )
    _report(result, data_dir)
    return result


def _fetch(source: Source, workspace: Workspace) -> Fetched:
    logger.info("%s: looking", source.name)
    fetched = source.fetch(workspace)
    origin = fetched.origin
    logger.info("%s: %d files, licence: %s", source.name, len(fetched.items), origin.licence)
    return fetched


def _check_categories(fetched: Sequence[Fetched]) -> None:
    """Refuse a category that two sources bring."""
    owners: dict[str, tuple[str, str]] = {}
    for one in fetched:
        for category in sorted({item.target.split("/")[0] for item in one.items}):
            name, owner = owners.setdefault(fold(category), (category, one.origin.source))
            if owner != one.origin.source:
                raise SourceError(f"both {owner} and {one.origin.source} bring a category {name}")


def _read_version(data_dir: Path) -> str | None:
    return dvc.read_data_version(data_dir.parent, pointer=Path(f"{data_dir.name}.dvc"))


def _version(data_dir: Path) -> str | None:
    """Put the data set under DVC, where there is one."""
    root = data_dir.parent
    if not (dvc.is_checkout(root) and git.is_checkout(root)):
        logger.warning(
            "%s: not in a checkout of DVC and Git, so this data has no version", data_dir
        )
        return None
    dvc.add([data_dir.name], root=root)
    return _read_version(data_dir)


def _write_record(
    path: Path, fetched: Sequence[Fetched], staged: dict[str, StagedFile], version: str | None
) -> None:
    entries: list[dict[str, Any]] = [
        asdict(one.origin)
        | {"files": {item.target: asdict(staged[item.target]) for item in one.items}}
        for one in fetched
    ]
    text = json.dumps({"version": version, "sources": entries}, indent=1, sort_keys=True)
    with write_whole(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


def _report(result: DownloadResult, data_dir: Path) -> None:
    logger.info(
        "%s: %s: %d files, %.1f MB, version %s; %s",
        data_dir,
        "replaced" if result.is_changed else "nothing changed, it is up to date",
        sum(result.categories.values()),
        result.bytes / 1e6,
        result.version or "none",
        ", ".join(f"{name} {count}" for name, count in result.categories.items()),
    )
