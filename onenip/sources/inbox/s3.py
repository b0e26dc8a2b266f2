"""A prefix of an S3 bucket as an inbox."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from onenip.errors import ArrivalError, SourceError, SourceUnreachableError
from onenip.folders import is_junk
from onenip.sources.inbox.base import (
    DEFECTIVE,
    NOTE_SUFFIX,
    RELEASED,
    Arrival,
    Inbox,
    Shelf,
    file_refusals,
    find_origin,
    parse_note,
    render_note,
)
from onenip.sources.s3 import explain_refusals

_CHUNK_BYTES = 1 << 20
_MISSING = ("404", "NoSuchKey", "NotFound")


class S3Inbox(Inbox):
    """A prefix of a bucket; credentials and endpoint come from the environment, as for any AWS tool."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix

    def list_arrivals(self, *, shelf: Shelf | None = None) -> Iterator[Arrival]:
        """See `Inbox`."""
        root = self._root(shelf)
        with explain_refusals(f"s3://{self._bucket}/{root}"):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=root):
                for entry in page.get("Contents", []):
                    key = entry["Key"].removeprefix(root)
                    if not key or key.endswith("/") or is_junk(PurePosixPath(key).parts):
                        continue
                    version = entry["ETag"].strip('"')
                    yield Arrival(key, version, entry["Size"], entry["LastModified"])

    def fetch(self, arrival: Arrival, path: Path, *, shelf: Shelf | None = None) -> bool:
        """See `Inbox`."""
        key = self._root(shelf) + arrival.key
        with file_refusals(path), _object_refusals(f"s3://{self._bucket}/{key}"):
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
            raise ArrivalError(
                f"s3://{self._bucket}/{key}: {path.stat().st_size} bytes came, "
                f"not {arrival.size}; try again"
            )
        return True

    def remove(self, arrival: Arrival) -> None:
        """See `Inbox`."""
        key = self._root() + arrival.key
        with _object_refusals(f"s3://{self._bucket}/{key}"):
            if self._version(key) == arrival.version:
                self._client.delete_object(Bucket=self._bucket, Key=key)

    def set_aside(
        self, arrival: Arrival, *, shelf: Shelf, name: str, note: Mapping[str, Any]
    ) -> None:
        """See `Inbox`."""
        key = self._root() + arrival.key
        with _object_refusals(f"s3://{self._bucket}/{key}"):
            self._write_note(shelf, name, note)
            self._move(key, self._root(shelf) + name, version=arrival.version)

    def read_note(self, shelf: str, name: str) -> dict[str, Any] | None:
        """See `Inbox`."""
        key = f"{self._root(shelf)}{name}{NOTE_SUFFIX}"
        with _object_refusals(f"s3://{self._bucket}/{key}"):
            try:
                body = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
            except ClientError as error:
                if error.response["Error"]["Code"] in _MISSING:
                    return None
                raise
        return parse_note(body)

    def release(self, name: str, *, note: Mapping[str, Any]) -> None:
        """See `Inbox`."""
        key = self._root("held") + name
        with _object_refusals(f"s3://{self._bucket}/{key}"):
            version = self._version(key)
            if version is None:
                raise SourceError(f"no held image {name}")
            target = self._root() + find_origin(name, self.read_note("held", name))
            if self._version(target) is not None:  # another image arrived there since
                target = f"{target.rpartition('/')[0]}/{PurePosixPath(name).name}"
            self._write_note(RELEASED, str(note["sha256"]), note)
            self._move(key, target, version=version)
            self._client.delete_object(Bucket=self._bucket, Key=key + NOTE_SUFFIX)

    def deliver(self, path: Path, key: str, *, note: Mapping[str, Any]) -> None:
        """See `Inbox`."""
        target = self._root() + key
        with _object_refusals(f"s3://{self._bucket}/{target}"):
            self._write_note(RELEASED, str(note["sha256"]), note)
            self._client.put_object(Bucket=self._bucket, Key=target, Body=path.read_bytes())

    def confirm_defect(self, name: str, *, note: Mapping[str, Any]) -> None:
        """See `Inbox`."""
        key = self._root("held") + name
        with _object_refusals(f"s3://{self._bucket}/{key}"):
            version = self._version(key)
            if version is None:
                raise SourceError(f"no held image {name}")
            self._write_note(DEFECTIVE, name, note)
            self._move(key, self._root(DEFECTIVE) + name, version=version)
            self._client.delete_object(Bucket=self._bucket, Key=key + NOTE_SUFFIX)

    def _root(self, shelf: str | None = None) -> str:
        return f"{self._prefix}-{shelf}/" if shelf else f"{self._prefix}/"

    @cached_property
    def _client(self) -> Any:
        config = Config(retries={"mode": "standard", "total_max_attempts": 5}, connect_timeout=10)
        # the default session would keep old credentials
        return boto3.Session().client("s3", config=config)

    def _version(self, key: str) -> str | None:
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
            Body=render_note(note).encode(),
            ContentType="application/json",
        )


@contextmanager
def _object_refusals(name: str) -> Iterator[None]:
    """Turn S3's refusal of one object into an `ArrivalError`; a server that is down stays one."""
    try:
        with explain_refusals(name):
            yield
    except SourceUnreachableError:
        raise
    except SourceError as error:
        raise ArrivalError(str(error)) from error
