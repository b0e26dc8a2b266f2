"""The source that a user names, by its form."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from onenip.addresses import fill_in, hide_secrets
from onenip.errors import SourceError
from onenip.sources.annotations import REMEDIES, name_format
from onenip.sources.archive import is_archive_name
from onenip.sources.catalog import CATALOG, CatalogSource
from onenip.sources.folder import ArchiveSource, DemoSource, FolderSource, S3Source
from onenip.sources.items import Source
from onenip.sources.manifest_files import MANIFEST_SUFFIXES, ManifestSource

_PIN = "#sha256="


def resolve_source(
    name: str,
    *,
    seed: int = 0,
    urls: Mapping[str, str] | None = None,
    has_consent: bool = False,
    endpoint_url: str | None = None,
    sign: bool = True,
) -> Source:
    """The source that a user names.

    Args:
        name: `demo`, a name of the catalog, `s3://bucket/prefix`, an http(s) address of an archive, or a
            folder, archive, CSV or JSON-lines file on this machine. `${NAME}` in an address is what the
            environment variable NAME holds.
        seed: of the demo.
        urls: other addresses of catalog entries.
        has_consent: the user accepts licences that need it.
        endpoint_url: of S3, if not AWS.
        sign: False reads public buckets without credentials.

    Raises:
        SourceError: if it is none of these.
    """
    if name == "demo":
        return DemoSource(name, seed)
    if name in CATALOG:
        variable = f"ONENIP_URL_{name.upper().replace('-', '_')}"
        own = os.environ.get(variable) or (urls or {}).get(name) or CATALOG[name].url
        url, pin = _split_pin(fill_in(own))
        sha256 = CATALOG[name].sha256 if pin is None else pin
        return CatalogSource(CATALOG[name], url, sha256, has_consent, endpoint_url, sign)
    url, pin = _split_pin(fill_in(name))
    name = hide_secrets(name)  # it is printed and kept
    if url.startswith("s3://"):
        if is_archive_name(url):
            return ArchiveSource(name, url, pin or "", endpoint_url, sign)
        return S3Source(name, endpoint_url, sign)
    if url.startswith(("http://", "https://")):
        return ArchiveSource(name, url, pin or "")
    return _resolve_path(name, Path(url), pin or "")


def _resolve_path(name: str, path: Path, sha256: str) -> Source:
    if path.is_dir():
        return FolderSource(name, path)
    if not path.is_file():
        known = ", ".join(["demo", *CATALOG])
        raise SourceError(
            f"{name}: no such folder or file, and no known data set ({known}, s3://…, https://…)"
        )
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        return ManifestSource(name, path)
    if is_archive_name(path.name):
        return ArchiveSource(name, str(path), sha256)
    if kind := name_format(path):
        raise SourceError(f"{name}: {kind}: {REMEDIES[kind]}")
    if path.suffix.lower() in (".xlsx", ".xlsm", ".xls", ".ods"):
        raise SourceError(f"{name}: a workbook is not read; save its table as CSV")
    raise SourceError(f"{name}: not a folder, an archive (zip, tar), a CSV or a JSON-lines file")


def _split_pin(address: str) -> tuple[str, str | None]:
    """An address and its checksum; `record` means that the first download's counts."""
    url, mark, pin = address.partition(_PIN)
    if not mark:
        return url, None
    return url, "" if pin == "record" else pin
