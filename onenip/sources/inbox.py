"""The inbox: where new images arrive, a folder or a prefix of an S3 bucket.

Beside it lie its shelves, `<inbox>-quarantine`, `<inbox>-held` and `<inbox>-duplicates`: what is not
ingested is moved there with a note that says why, and nothing is ever deleted unread.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from onenip.errors import SourceError

Shelf = Literal["quarantine", "held", "duplicates"]
SHELVES: tuple[Shelf, ...] = ("quarantine", "held", "duplicates")
NOTE_SUFFIX = ".json"

_CHUNK_BYTES = 1 << 20
_RELEASED = "released"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MISSING = ("404", "NoSuchKey", "NotFound")


@dataclass(frozen=True)
class Arrival:
    """One object in the inbox.

    Attributes:
        key: path below the inbox, POSIX separators, such as `bottle/0001.png`.
        version: changes whenever its content is replaced.
        size: in bytes.
        arrived_at: UTC.
    """

    key: str
    version: str
    size: int
    arrived_at: datetime

    @property
    def category(self) -> str:
        """First folder of the key; empty if it lies in none."""
        first, slash, _ = self.key.partition("/")
        return first if slash else ""


class Inbox(ABC):
    """Where images arrive. Every method may be called again after a kill, to the same effect."""

    @abstractmethod
    def list_arrivals(self, *, shelf: Shelf | None = None) -> Iterator[Arrival]:
        """Complete objects in the inbox, or on a shelf (with their notes), as they come.

        Raises:
            SourceError: if the inbox is missing or cannot be reached.
        """

    @abstractmethod
    def fetch(self, arrival: Arrival, path: Path) -> bool:
        """Copy an object to a file; whether it is still there, in this version.

        Raises:
            SourceError: if it cannot be read, or the disk is full.
        """

    @abstractmethod
    def remove(self, arrival: Arrival) -> None:
        """Remove an object, unless its content was replaced since.

        Raises:
            SourceError: if it cannot be removed.
        """

    @abstractmethod
    def set_aside(
        self, arrival: Arrival, *, shelf: Shelf, name: str, note: Mapping[str, Any]
    ) -> None:
        """Move an object to a shelf, with a note beside it.

        Args:
            arrival: what to move.
            shelf: where to.
            name: path below the shelf; the same image always gets the same one.
            note: who decided what and why.

        Raises:
            SourceError: if it cannot be moved.
        """

    @abstractmethod
    def read_note(self, shelf: str, name: str) -> dict[str, Any] | None:
        """The note of an image on a shelf, None if there is none."""

    @abstractmethod
    def release(self, name: str, *, note: Mapping[str, Any]) -> None:
        """Move a held image back to the inbox, marked as looked at; see `is_released`.

        Args:
            name: path below the shelf `held`.
            note: who released it and why; its `sha256` is what is marked.

        Raises:
            SourceError: if no such image is held.
        """

    def is_released(self, sha256: str) -> bool:
        """Whether a person has looked at an image with this content and let it pass."""
        return self.read_note(_RELEASED, sha256) is not None


def open_inbox(address: str, *, settle_seconds: float) -> Inbox:
    """The inbox behind an address: a folder, or `s3://bucket/prefix`.

    Args:
        address: as in `retrain.inbox`.
        settle_seconds: files of a folder younger than this may still be growing and are left alone.

    Raises:
        SourceError: if the address is neither.
    """
    if "://" not in address:
        return FolderInbox(Path(address), settle_seconds=settle_seconds)
    parts = urlsplit(address)
    prefix = parts.path.strip("/")
    if parts.scheme != "s3" or not parts.netloc or not prefix:
        raise SourceError(f"retrain.inbox: {address} is no folder and no s3://bucket/prefix")
    return S3Inbox(parts.netloc, prefix)


class FolderInbox(Inbox):
    """A folder, perhaps on a network drive that cameras write to."""

    def __init__(self, folder: Path, *, settle_seconds: float = 0.0) -> None:
        self._folder = folder
        self._settle_seconds = settle_seconds

    def list_arrivals(self, *, shelf: Shelf | None = None) -> Iterator[Arrival]:
        """See `Inbox`; hidden files and those that may still grow are left out.

        The age of a file that is dated in the future tells nothing: it is looked at twice instead.
        """
        root = self._shelf(shelf) if shelf else self._folder
        if not root.is_dir():
            if shelf:
                return
            raise SourceError(f"retrain.inbox: there is no folder {root}")
        now = datetime.now(tz=UTC).timestamp()
        undated = []
        for parent, folders, files in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                path = Path(parent, name)
                found = _stat(path)
                if name.startswith(".") or found is None:
                    continue
                arrival = _to_arrival(path.relative_to(root).as_posix(), found)
                age = now - found.st_mtime
                if shelf or age >= self._settle_seconds:
                    yield arrival
                elif age <= -self._settle_seconds:
                    undated.append(arrival)
        if undated:
            time.sleep(self._settle_seconds)
        yield from filter(self._is_same, undated)

    def fetch(self, arrival: Arrival, path: Path) -> bool:
        """See `Inbox`."""
        source = self._folder / arrival.key
        with _file_refusals(source, target=path):
            try:
                shutil.copyfile(source, path)
            except FileNotFoundError:
                return False
        return self._is_same(arrival)

    def remove(self, arrival: Arrival) -> None:
        """See `Inbox`."""
        if self._is_same(arrival):
            with _file_refusals(self._folder / arrival.key):
                (self._folder / arrival.key).unlink(missing_ok=True)

    def set_aside(
        self, arrival: Arrival, *, shelf: Shelf, name: str, note: Mapping[str, Any]
    ) -> None:
        """See `Inbox`."""
        target = self._shelf(shelf) / name
        with _file_refusals(target):
            self._write_note(shelf, name, note)
            if self._is_same(arrival):
                shutil.move(self._folder / arrival.key, target)

    def read_note(self, shelf: str, name: str) -> dict[str, Any] | None:
        """See `Inbox`."""
        try:
            text = (self._shelf(shelf) / f"{name}{NOTE_SUFFIX}").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return _parse(text)

    def release(self, name: str, *, note: Mapping[str, Any]) -> None:
        """See `Inbox`."""
        source = self._shelf("held") / name
        if not source.is_file():
            raise SourceError(f"no held image {name}")
        with _file_refusals(source):
            self._write_note(_RELEASED, str(note["sha256"]), note)
            target = self._folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(source, target)
            (self._shelf("held") / f"{name}{NOTE_SUFFIX}").unlink(missing_ok=True)

    def _shelf(self, shelf: str) -> Path:
        return self._folder.with_name(f"{self._folder.name}-{shelf}")

    def _write_note(self, shelf: str, name: str, note: Mapping[str, Any]) -> None:
        path = self._shelf(shelf) / f"{name}{NOTE_SUFFIX}"
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.part")
        draft.write_text(_render(note), encoding="utf-8")
        os.replace(draft, path)

    def _is_same(self, arrival: Arrival) -> bool:
        found = _stat(self._folder / arrival.key)
        return found is not None and _to_arrival(arrival.key, found).version == arrival.version


class S3Inbox(Inbox):
    """A prefix of a bucket; credentials and endpoint come from the environment, as for any AWS tool."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix

    def list_arrivals(self, *, shelf: Shelf | None = None) -> Iterator[Arrival]:
        """See `Inbox`."""
        root = self._root(shelf)
        with _s3_refusals(f"s3://{self._bucket}/{root}"):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=root):
                for entry in page.get("Contents", []):
                    key = entry["Key"].removeprefix(root)
                    if not key or key.endswith("/") or PurePosixPath(key).name.startswith("."):
                        continue
                    version = entry["ETag"].strip('"')
                    yield Arrival(key, version, entry["Size"], entry["LastModified"])

    def fetch(self, arrival: Arrival, path: Path) -> bool:
        """See `Inbox`."""
        from botocore.exceptions import ClientError

        key = self._root() + arrival.key
        with _s3_refusals(f"s3://{self._bucket}/{key}"), _file_refusals(path):
            try:
                answer = self._client.get_object(
                    Bucket=self._bucket, Key=key, IfMatch=f'"{arrival.version}"'
                )
            except ClientError as error:
                if error.response["Error"]["Code"] in (*_MISSING, "PreconditionFailed", "412"):
                    return False
                raise
            with path.open("wb") as file:
                for chunk in answer["Body"].iter_chunks(_CHUNK_BYTES):
                    file.write(chunk)
        if path.stat().st_size != arrival.size:
            raise SourceError(
                f"s3://{self._bucket}/{key}: {path.stat().st_size} bytes came, "
                f"not {arrival.size}; try again"
            )
        return True

    def remove(self, arrival: Arrival) -> None:
        """See `Inbox`."""
        key = self._root() + arrival.key
        with _s3_refusals(f"s3://{self._bucket}/{key}"):
            if self._version(key) == arrival.version:
                self._client.delete_object(Bucket=self._bucket, Key=key)

    def set_aside(
        self, arrival: Arrival, *, shelf: Shelf, name: str, note: Mapping[str, Any]
    ) -> None:
        """See `Inbox`."""
        key = self._root() + arrival.key
        with _s3_refusals(f"s3://{self._bucket}/{key}"):
            self._write_note(shelf, name, note)
            self._move(key, self._root(shelf) + name, version=arrival.version)

    def read_note(self, shelf: str, name: str) -> dict[str, Any] | None:
        """See `Inbox`."""
        from botocore.exceptions import ClientError

        key = f"{self._root(shelf)}{name}{NOTE_SUFFIX}"
        with _s3_refusals(f"s3://{self._bucket}/{key}"):
            try:
                body = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
            except ClientError as error:
                if error.response["Error"]["Code"] in _MISSING:
                    return None
                raise
        return _parse(body.decode())

    def release(self, name: str, *, note: Mapping[str, Any]) -> None:
        """See `Inbox`."""
        key = self._root("held") + name
        with _s3_refusals(f"s3://{self._bucket}/{key}"):
            version = self._version(key)
            if version is None:
                raise SourceError(f"no held image {name}")
            self._write_note(_RELEASED, str(note["sha256"]), note)
            self._move(key, self._root() + name, version=version)
            self._client.delete_object(Bucket=self._bucket, Key=key + NOTE_SUFFIX)

    def _root(self, shelf: str | None = None) -> str:
        return f"{self._prefix}-{shelf}/" if shelf else f"{self._prefix}/"

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        config = Config(retries={"mode": "standard", "total_max_attempts": 5}, connect_timeout=10)
        return boto3.client("s3", config=config)

    def _version(self, key: str) -> str | None:
        from botocore.exceptions import ClientError

        try:
            etag = self._client.head_object(Bucket=self._bucket, Key=key)["ETag"]
        except ClientError as error:
            if error.response["Error"]["Code"] in _MISSING:
                return None
            raise
        return etag.strip('"')

    def _move(self, key: str, target: str, *, version: str) -> None:
        if self._version(key) != version:
            return  # moved before, or replaced: then it is another arrival
        client = self._client
        client.copy_object(
            Bucket=self._bucket, Key=target, CopySource={"Bucket": self._bucket, "Key": key}
        )
        client.delete_object(Bucket=self._bucket, Key=key)

    def _write_note(self, shelf: str, name: str, note: Mapping[str, Any]) -> None:
        self._client.put_object(
            Bucket=self._bucket,
            Key=f"{self._root(shelf)}{name}{NOTE_SUFFIX}",
            Body=_render(note).encode(),
            ContentType="application/json",
        )


def _stat(path: Path) -> os.stat_result | None:
    try:
        found = path.stat()
    except OSError:  # gone, or a link to nowhere
        return None
    return found if path.is_file() else None


def _to_arrival(key: str, found: os.stat_result) -> Arrival:
    arrived_at = datetime.fromtimestamp(found.st_mtime, tz=UTC)
    return Arrival(key, f"{found.st_size}-{found.st_mtime_ns}", found.st_size, arrived_at)


def _render(note: Mapping[str, Any]) -> str:
    return json.dumps(dict(note), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _parse(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except ValueError:
        return {}


@contextmanager
def _file_refusals(path: Path, *, target: Path | None = None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if target is not None and error.errno in _FULL:
            path = target
        raise SourceError(f"{path}: {error.strerror or error}") from error


@contextmanager
def _s3_refusals(what: str) -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise SourceError(f"{what}: {error}") from error
