"""Sources that need no conversion of their own: folders, archives, S3 prefixes, the demo."""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from onenip.addresses import hide_secrets
from onenip.errors import SourceError
from onenip.folders import walk_files
from onenip.sources import http
from onenip.sources.annotations import COCO, LABELME, REMEDIES, apply, name_format, read_marked
from onenip.sources.archive import extract, is_archive_name
from onenip.sources.items import Fetched, Item, Origin, Workspace, check_relative
from onenip.sources.layout import arrange
from onenip.sources.manifest_files import VISA_TABLE, convert_visa
from onenip.sources.s3 import Bucket, S3Object

logger = logging.getLogger(__name__)

_ARCHIVE_STEM = ".tar"
_REAL_IAD = re.compile(r"(^|/)(OK|NG/\w+)/S\d{4}/[^/]+$")


def place_folder(folder: Path, *, name: str, origin: str) -> list[Item]:
    """Items of a folder whose files are to be placed by their paths."""
    paths = [path.relative_to(folder).as_posix() for path in walk_files(folder)]
    if any(f"/{path}".endswith(VISA_TABLE) for path in paths):
        return convert_visa(folder)
    if any(map(_REAL_IAD.search, paths)):
        raise SourceError(
            f"{origin}: it lies as Real-IAD unpacks, which is not read; write a CSV with path, category, "
            "label and mask: each .jpg, and the .png beside it"
        )
    marked, others = {}, []
    for path in (path for path in paths if path.lower().endswith((".json", ".manifest"))):
        kind = name_format(folder / path)
        if kind in (COCO, LABELME):
            marked[folder / path] = read_marked(folder / path, kind)
        elif kind:
            others.append(f"{path} is {kind}, which is not read with a folder: {REMEDIES[kind]}")
    paths = [path for path in paths if folder / path not in marked]
    items: list[Item] = []
    for place in arrange(paths, name=name, origin=origin):
        more = tuple(folder / path for path in place.more)
        items.append(Item(place.target, folder / place.path, place.is_mask, more=more))
    for file in [file for item in items for file in (item.file, *item.more)]:
        if not file.is_file():
            raise SourceError(f"{file}: neither a file nor a link to one")
    if others and not any("/test/" in item.target for item in items):  # it alone knows the defects
        raise SourceError(f"{origin}: {others[0]}")
    for line in others:
        logger.warning("%s: %s", origin, line)
    return apply(items, marked, origin) if marked else items


def fetch_archive(
    workspace: Workspace,
    url: str,
    *,
    source: str,
    sha256: str,
    endpoint_url: str | None = None,
    sign: bool = True,
) -> tuple[http.Downloaded, Path | None]:
    """Bring an archive from HTTP(S) or S3 and unpack it.

    Returns:
        What was downloaded, and the folder; the folder is None if the data set still holds the very files
        of this archive.
    """
    slot = workspace.slot("archive", url)
    known = workspace.previous(source)
    has_all = known.get("address") == hide_secrets(url) and workspace.reuse_all(source) is not None
    tag = str(known.get("tag", "")) if has_all else ""
    if has_all and sha256 and known.get("sha256") == sha256.lower():
        return http.Downloaded(None, "", tag), None
    if url.startswith("s3://"):
        bucket = Bucket(url, endpoint_url=endpoint_url, sign=sign, workers=workspace.workers)
        item = bucket.list_objects()[0]
        if item.etag == tag:
            return http.Downloaded(None, "", tag), None
        slot = workspace.slot("archive", url, item.etag)
        bucket.fetch({slot: item})
        done = http.check_file(url, slot, sha256, item.etag)
    else:
        done = http.download(url, slot, sha256=sha256, known_tag=tag)
    if done.path is None:
        return done, None
    unpacked = extract(
        done.path,
        workspace.slot("unpacked", done.sha256),
        limits=workspace.limits,
        name=hide_secrets(url),
    )
    return done, unpacked


@dataclass(frozen=True)
class FolderSource:
    """A folder on this machine."""

    name: str
    path: Path

    def fetch(self, workspace: Workspace) -> Fetched:
        """Place the folder's files; they are only read."""
        folder = self.path.resolve()
        data_dir = workspace.data_dir.resolve()
        if folder == data_dir or data_dir in folder.parents:
            raise SourceError(f"{self.name}: is the data set itself; name another folder")
        items = place_folder(folder, name=folder.name, origin=self.name)
        return Fetched(items, Origin(self.name, str(self.path)))


@dataclass(frozen=True)
class ArchiveSource:
    """A zip or tar: on this machine, by HTTP(S), or an object of S3."""

    name: str
    url: str
    sha256: str = ""
    endpoint_url: str | None = None
    sign: bool = True

    def fetch(self, workspace: Workspace) -> Fetched:
        """Fetch, check and unpack the archive."""
        address = self.url.partition("?")[0] if "://" in self.url else self.url
        stem = Path(address).name.split(_ARCHIVE_STEM)[0].removesuffix(".zip")
        if "://" not in self.url:
            done = http.check_file(self.name, Path(self.url), self.sha256, "", keep=True)
            unpacked = extract(
                Path(self.url),
                workspace.slot("unpacked", done.sha256),
                limits=workspace.limits,
            )
            items = place_folder(unpacked, name=stem, origin=self.name)
            return Fetched(items, Origin(self.name, self.url, sha256=done.sha256))
        done, folder = fetch_archive(
            workspace,
            self.url,
            source=self.name,
            sha256=self.sha256,
            endpoint_url=self.endpoint_url,
            sign=self.sign,
        )
        return finish(workspace, self.name, self.url, done, folder, stem, bool(self.sha256))


def finish(
    workspace: Workspace,
    name: str,
    url: str,
    done: http.Downloaded,
    folder: Path | None,
    stem: str,
    is_pinned: bool,
) -> Fetched:
    """Items of an unpacked archive, or of the data set where the archive is still the same."""
    url = hide_secrets(url)
    if folder is None:
        known = workspace.previous(name)
        origin = Origin(name, url, sha256=known["sha256"], is_pinned=is_pinned, tag=known["tag"])
        return Fetched(workspace.reuse_all(name) or [], origin)
    items = place_folder(folder, name=stem, origin=name)
    return Fetched(items, Origin(name, url, "unknown", "", done.sha256, is_pinned, done.tag))


@dataclass(frozen=True)
class S3Source:
    """Images below a prefix of a bucket, placed by their keys."""

    name: str
    endpoint_url: str | None = None
    sign: bool = True

    def fetch(self, workspace: Workspace) -> Fetched:
        """Fetch the objects that are new or changed since the last download."""
        bucket = Bucket(
            self.name, endpoint_url=self.endpoint_url, sign=self.sign, workers=workspace.workers
        )
        objects = bucket.list_objects()
        if len(objects) == 1 and is_archive_name(objects[0].key):
            url = f"s3://{bucket.name}/{objects[0].key}"
            return ArchiveSource(self.name, url, "", self.endpoint_url, self.sign).fetch(workspace)
        keys = {bucket.relative(item) or Path(item.key).name: item for item in objects}
        for key in keys:
            check_relative(key, self.name)
        if said := [key for key in keys if key.lower().endswith((".json", ".manifest"))]:
            remedy = "if they say what is defective, copy the bucket into a folder and name that"
            logger.warning(
                "%s: annotations in a bucket are not read: %s; %s", self.name, said[0], remedy
            )
        stem = Path(bucket.prefix).name or bucket.name
        items: list[Item] = []
        wanted: dict[Path, S3Object] = {}
        for place in arrange(keys, name=stem, origin=self.name):
            objects = [keys[path] for path in (place.path, *place.more)]
            tags = [f"{found.etag}:{found.size}:{found.key}" for found in objects]
            tag = "|".join(tags)
            path = workspace.reuse(self.name, place.target, tag)
            if path is None:
                slots = [workspace.slot("object", bucket.name, one) for one in tags]
                wanted |= dict(zip(slots, objects, strict=True))
                items.append(Item(place.target, slots[0], place.is_mask, tag, tuple(slots[1:])))
            else:
                items.append(Item(place.target, path, tag=tag))
        bucket.fetch(wanted)
        return Fetched(items, Origin(self.name, self.name))


@dataclass(frozen=True)
class DemoSource:
    """The embedded demo set, drawn anew, the same for the same seed."""

    name: str
    seed: int

    def fetch(self, workspace: Workspace) -> Fetched:
        """Draw the set."""
        from onenip.sources.demo import draw_demo

        folder = workspace.slot("demo", str(self.seed))
        shutil.rmtree(folder, ignore_errors=True)
        draw_demo(folder, seed=self.seed)
        items = place_folder(folder, name="demo", origin=self.name)
        return Fetched(items, Origin(self.name, f"drawn with seed {self.seed}", "as onenip itself"))
