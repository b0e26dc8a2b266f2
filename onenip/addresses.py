"""Addresses as they may be shown and kept: without password, token or signature."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

HIDDEN = "***"


def hide_secrets(address: str) -> str:
    """An address without what may grant access: user and password, query and fragment.

    Anything that is no address (a folder, a plain word) is returned as it is.

    Example:
        >>> hide_secrets("https://me:word@host/a.zip?X-Amz-Signature=1")
        'https://***@host/a.zip?***'
    """
    if "://" not in address:
        return address
    try:
        parts = urlsplit(address)
    except ValueError:  # such as a broken IPv6 host: then nothing of it is shown
        return HIDDEN
    host = parts.netloc.rpartition("@")[2]
    shown = f"{HIDDEN}@{host}" if "@" in parts.netloc else host
    return urlunsplit((parts.scheme, shown, parts.path, HIDDEN if parts.query else "", ""))
