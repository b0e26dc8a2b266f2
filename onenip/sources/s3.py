"""Objects from S3, AWS or any server that speaks it: in parallel, in parts, resumed, checked.

Every part is asked for with the ETag of the listing, so an object that changes meanwhile is noticed and
never mixed; and it is resumed where a kill or a cut stopped it, which boto3's own transfers do not do.
Credentials, region and endpoint come from the environment as for every AWS tool.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.exceptions import (
    ConnectionError as BotoConnectionError,
)
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from onenip.errors import SourceError, SourceUnreachableError

logger = logging.getLogger(__name__)

PART_BYTES = 16 << 20
ATTEMPTS = 6
_CHUNK = 1 << 16
_REASONS = {
    "NoSuchBucket": "there is no such bucket; check its name and AWS_ENDPOINT_URL",
    "NoSuchKey": "there is no such object",
    "404": "there is no such bucket or object",
    "AccessDenied": "access is denied; check the account's rights, or --no-sign-request if it is public",
    "403": "access is denied; check the account's rights, or --no-sign-request if it is public",
    "InvalidAccessKeyId": "the server does not know this AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "wrong AWS_SECRET_ACCESS_KEY",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it (for example `timedatectl set-ntp on`)",
    "RequestExpired": "this machine's clock is wrong; set it (for example `timedatectl set-ntp on`)",
    "ExpiredToken": "the credentials expired; get new ones",
    "PreconditionFailed": "the object changed while it was read; run the command again",
    "412": "the object changed while it was read; run the command again",
    "PermanentRedirect": "the bucket lives in another region; set AWS_DEFAULT_REGION",
}
_CUT = (HTTPClientError, IncompleteReadError, BotoConnectionError, HTTPError)


@dataclass(frozen=True)
class S3Object:
    """One object of a listing: its key, size in bytes, and ETag without quotes."""

    key: str
    size: int
    etag: str


class Bucket:
    """One bucket, or the part of it below a prefix.

    Args:
        url: `s3://bucket/prefix`.
        endpoint_url: of another server than AWS; None means AWS_ENDPOINT_URL, or AWS.
        sign: False for public buckets: no credentials are needed or sent.
        workers: parallel transfers.
        part_bytes: larger objects are fetched in parts of this size, in parallel.
    """

    def __init__(
        self,
        url: str,
        *,
        endpoint_url: str | None = None,
        sign: bool = True,
        workers: int = 8,
        part_bytes: int = PART_BYTES,
    ) -> None:
        address = urlsplit(url, allow_fragments=False)
        if address.scheme != "s3" or not address.netloc:
            raise SourceError(f"{url}: expected s3://bucket/prefix")
        self.url = url
        self.name = address.netloc
        self.prefix = address.path.lstrip("/")
        self._workers = workers
        self._part_bytes = part_bytes
        config = Config(
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            connect_timeout=10,
            read_timeout=30,
            max_pool_connections=workers,
            **({} if sign else {"signature_version": UNSIGNED}),
        )
        with explain_refusals(self._name_of("")):
            session = boto3.Session()  # the default one would keep old credentials
            self._client: Any = session.client("s3", endpoint_url=endpoint_url, config=config)

    def list_objects(self) -> list[S3Object]:
        """Objects at or below the prefix, sorted by key; folders' own markers are left out.

        Raises:
            SourceError: if the bucket cannot be read, or nothing is there.
        """
        folder = self.prefix if not self.prefix or self.prefix.endswith("/") else f"{self.prefix}/"
        objects = []
        with explain_refusals(self._name_of("")):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.name, Prefix=self.prefix
            )
            for page in pages:
                for entry in page.get("Contents", []):
                    key = entry["Key"]
                    if key == self.prefix or (key.startswith(folder) and not key.endswith("/")):
                        objects.append(S3Object(key, entry["Size"], entry["ETag"].strip('"')))
        objects = [item for item in objects if not item.key.endswith("/")]
        if not objects:
            raise SourceError(f"{self.url}: the bucket holds nothing there; check the prefix")
        return sorted(objects, key=lambda item: item.key)

    def relative(self, item: S3Object) -> str:
        """Key of an object below the prefix."""
        return item.key.removeprefix(self.prefix).lstrip("/")

    def fetch(self, wanted: dict[Path, S3Object]) -> None:
        """Bring objects to files; each appears when it is complete and its size and ETag are right.

        Args:
            wanted: files to make, and the objects to make them of; files that exist are left alone.

        Raises:
            SourceError: if an object cannot be had, or changed since it was listed.
        """
        missing = {path: item for path, item in wanted.items() if not path.is_file()}
        with (
            tqdm(
                desc=self.url,
                total=sum(item.size for item in missing.values()),
                unit="B",
                unit_scale=True,
                disable=None,
            ) as bar,
            ThreadPoolExecutor(self._workers) as pool,
        ):
            tasks = {}
            for path, item in missing.items():
                for start, part in self._parts(path, item):
                    end = min(start + self._part_bytes, item.size)
                    tasks[pool.submit(self._fetch_part, item, start, end, part, bar)] = path
            left = {path: len(self._parts(path, item)) for path, item in missing.items()}
            try:
                for task in as_completed(tasks):
                    task.result()
                    path = tasks[task]
                    left[path] -= 1
                    if not left[path]:
                        self._join(path, missing[path])
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _parts(self, path: Path, item: S3Object) -> list[tuple[int, Path]]:
        """Start of each part in bytes, and the file that it is fetched to."""
        starts = range(0, max(item.size, 1), self._part_bytes)
        return [(start, path.with_name(f"{path.name}.part{start}")) for start in starts]

    def _fetch_part(self, item: S3Object, start: int, end: int, part: Path, bar: tqdm[Any]) -> None:
        retrying = Retrying(
            retry=retry_if_exception_type(_CUT),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential_jitter(multiplier=0.2, max=20),
            reraise=True,
        )
        with explain_refusals(self._name_of(item.key)):
            retrying(self._read_range, item, start, end, part, bar)

    def _read_range(self, item: S3Object, start: int, end: int, part: Path, bar: tqdm[Any]) -> None:
        """Append to the part's file what it lacks."""
        begun = start + (part.stat().st_size if part.is_file() else 0)
        if item.size == 0:
            part.touch()
        if begun >= end:
            return
        reply = self._client.get_object(
            Bucket=self.name, Key=item.key, Range=f"bytes={begun}-{end - 1}", IfMatch=item.etag
        )
        if reply["ETag"].strip('"') != item.etag:
            raise SourceError(f"{self._name_of(item.key)}: {_REASONS['PreconditionFailed']}")
        with part.open("ab") as file:
            for chunk in reply["Body"].iter_chunks(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))

    def _join(self, path: Path, item: S3Object) -> None:
        """Make one checked file of the parts."""
        parts = [part for _, part in self._parts(path, item)]
        whole = parts[0]
        if len(parts) > 1:
            whole = path.with_name(f"{path.name}.joined")
            with whole.open("wb") as output:
                for part in parts:
                    output.write(part.read_bytes())
        problem = self._find_problem(whole, item)
        if problem:
            for part in {whole, *parts}:
                part.unlink()
            raise SourceError(f"{self._name_of(item.key)}: {problem}; run the command again")
        whole.replace(path)
        for part in set(parts) - {whole}:
            part.unlink()

    def _find_problem(self, path: Path, item: S3Object) -> str:
        if path.stat().st_size != item.size:
            return f"{path.stat().st_size} bytes came instead of {item.size}"
        if re.fullmatch(r"[0-9a-f]{32}", item.etag):
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "md5").hexdigest()
        elif match := re.fullmatch(r"[0-9a-f]{32}-(\d+)", item.etag):
            found = self._multipart_etag(path, item, int(match[1]))
        else:
            return ""  # some servers' ETags are no checksum
        if found == item.etag or self._is_encrypted(item):
            return ""
        return f"wrong checksum: {found} instead of {item.etag}"

    def _multipart_etag(self, path: Path, item: S3Object, count: int) -> str:
        """ETag of an object that was uploaded in parts: md5 of the parts' md5s."""
        with explain_refusals(self._name_of(item.key)):
            head = self._client.head_object(Bucket=self.name, Key=item.key, PartNumber=1)
        size = head["ContentLength"]
        if size * count < item.size:  # the server ignores part numbers: nothing to compare with
            return item.etag
        digest = hashlib.md5(usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(size):
                digest.update(hashlib.md5(chunk, usedforsecurity=False).digest())
        return f"{digest.hexdigest()}-{count}"

    def _is_encrypted(self, item: S3Object) -> bool:
        """Whether the server encrypts with a key of its own, where an ETag is no checksum."""
        with explain_refusals(self._name_of(item.key)):
            head = self._client.head_object(Bucket=self.name, Key=item.key)
        is_kms = str(head.get("ServerSideEncryption", "")).startswith("aws:kms")
        return is_kms or "SSECustomerAlgorithm" in head

    def _name_of(self, key: str) -> str:
        return f"s3://{self.name}/{key}" if key else self.url


@contextmanager
def explain_refusals(name: str) -> Iterator[None]:
    """Turn boto3's errors into one that begins with `name` and says what to do.

    A server that is down or broke off becomes a `SourceUnreachableError`, all else a `SourceError`.
    """
    try:
        yield
    except ClientError as error:
        code = str(error.response["Error"].get("Code", ""))
        reason = _REASONS.get(code, f"{code}: {error.response['Error'].get('Message', '')}")
        is_fault = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500
        kind = SourceUnreachableError if is_fault else SourceError
        raise kind(f"{name}: {reason}") from error
    except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
        raise SourceError(
            f"{name}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or --no-sign-request if it is public"
        ) from error
    except (*_CUT, BotoCoreError) as error:
        raise SourceUnreachableError(
            f"{name}: cut off ({error}); run the command again to go on from there"
        ) from error
    except ValueError as error:  # boto3's word for a malformed endpoint
        raise SourceError(f"{name}: {error}") from error
