"""Small files under one address, a folder or `s3://bucket/prefix`: written, read, listed, deleted by name."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from onenip.errors import SourceError

if TYPE_CHECKING:
    from typing import Any


# gone, a folder, or a link that leads nowhere
_NO_FILE = (errno.ENOENT, errno.EISDIR, errno.ELOOP)


class Files(Protocol):
    """Files by name, with `/` between folders. Whatever refuses raises OSError or SourceError."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file; whoever reads it meanwhile gets the old content or the new one."""
        ...

    def read(self, name: str) -> bytes | None:
        """Content of a file, None if there is none."""
        ...

    def list_names(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """Names below a folder and sizes in bytes, sorted by name."""
        ...

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        ...


def open_files(address: str | Path) -> Files:
    """The files under an address; credentials of S3 come from the environment.

    Raises:
        SourceError: if it is neither a folder nor `s3://bucket/prefix`.
    """
    text = str(address)
    if "://" not in text:
        return FolderFiles(Path(text))
    parts = urlsplit(text)
    if parts.scheme != "s3" or not parts.netloc or not parts.path.strip("/"):
        raise SourceError(f"{text} is no folder and no s3://bucket/prefix")
    return S3Files(parts.netloc, f"{parts.path.strip('/')}/")


class FolderFiles:
    """Files in a folder, made if absent. They survive a kill, perhaps not a power cut."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, name: str, content: bytes) -> None:
        """See `Files`."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            draft.write_bytes(content)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        """See `Files`."""
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            if error.errno in _NO_FILE:
                return None
            raise

    def list_names(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """See `Files`."""
        found = []
        for parent, _, names in os.walk(self._folder / folder):
            for name in names:
                path = Path(parent, name)
                try:
                    size = path.stat().st_size
                except OSError:  # deleted meanwhile, or a link that leads nowhere
                    continue
                if not name.startswith("."):
                    found.append((path.relative_to(self._folder).as_posix(), size))
        yield from sorted(found)

    def delete(self, name: str) -> None:
        """See `Files`."""
        (self._folder / name).unlink(missing_ok=True)


class S3Files:
    """Objects below a prefix, which ends with `/`."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket = bucket
        self._prefix = prefix

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        config = Config(
            retries={"mode": "standard", "total_max_attempts": 2},
            connect_timeout=3,  # seconds: a server or a page waits for it
            read_timeout=5,
        )
        # the default session would keep old credentials
        return boto3.Session().client("s3", config=config)

    def write(self, name: str, content: bytes) -> None:
        """See `Files`."""
        with self._refusals(name):
            self._client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=content)

    def read(self, name: str) -> bytes | None:
        """See `Files`."""
        with self._refusals(name):
            try:
                found = self._client.get_object(Bucket=self._bucket, Key=self._prefix + name)
            except self._client.exceptions.NoSuchKey:
                return None
            content: bytes = found["Body"].read()
            return content

    def list_names(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """See `Files`."""
        with self._refusals(folder):
            pages = self._client.get_paginator("list_objects_v2")
            prefix = self._prefix + (f"{folder}/" if folder else "")
            for page in pages.paginate(Bucket=self._bucket, Prefix=prefix):
                for entry in page.get("Contents", []):
                    yield entry["Key"].removeprefix(self._prefix), entry["Size"]

    def delete(self, name: str) -> None:
        """See `Files`."""
        with self._refusals(name):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def _refusals(self, name: str) -> Any:
        from onenip.sources.s3 import explain_refusals

        return explain_refusals(f"s3://{self._bucket}/{self._prefix}{name}")
