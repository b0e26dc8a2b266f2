"""The inbox: where new images arrive, a folder or a prefix of an S3 bucket.

Beside it lie its shelves, `<inbox>-quarantine`, `<inbox>-held` and `<inbox>-duplicates`: what is not
ingested is moved there with a note that says why, and nothing is ever deleted unread.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from onenip.errors import SourceError
from onenip.sources.inbox.base import NOTE_SUFFIX, SHELVES, Arrival, Inbox, Shelf
from onenip.sources.inbox.folder import FolderInbox

__all__ = ["NOTE_SUFFIX", "SHELVES", "Arrival", "FolderInbox", "Inbox", "Shelf", "open_inbox"]


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
    from onenip.sources.inbox.s3 import S3Inbox

    return S3Inbox(parts.netloc, prefix)
