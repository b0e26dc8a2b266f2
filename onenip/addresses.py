"""Addresses as they may be shown and kept: without password, token or signature.

In their place stands `${NAME}`, for what the environment variable NAME holds.
"""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit, urlunsplit

from onenip.errors import SourceError

HIDDEN = "***"

_VARIABLE = re.compile(r"\$\{(\w+)\}")


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


def holds_secret(address: str) -> bool:
    """Whether an address itself holds user, password or query, and not just names of variables.

    Example:
        >>> holds_secret("https://me:word@host/a.zip"), holds_secret("https://${LOGIN}@host/a.zip")
        (True, False)
    """
    bare = _VARIABLE.sub("", address)
    if "://" not in bare:
        return False
    try:
        parts = urlsplit(bare)
    except ValueError:
        return True
    user = parts.netloc.rpartition("@")[0]
    return bool(user.strip(":") or re.sub(r"[\w-]+=(&|$)", "", parts.query))


def fill_in(address: str) -> str:
    """An address with the values of the environment variables that it names.

    Raises:
        SourceError: if one is not set.
    """

    def read(found: re.Match[str]) -> str:
        value = os.environ.get(found[1])
        if value is None:
            raise SourceError(f"{hide_secrets(address)}: {found[1]} is not set in the environment")
        return value

    return _VARIABLE.sub(read, address) if "://" in address else address
