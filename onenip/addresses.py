"""Addresses as they may be shown and kept: without password, token or signature.

In their place stands `${NAME}`, for what the environment variable NAME holds. Knows the proxies before them.
"""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit, urlunsplit

from onenip.errors import SourceError

HIDDEN = "***"
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")
_LOCAL = ("localhost", "127.0.0.1", "::1")

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


def pass_by_proxy() -> None:
    """Let requests to servers on this machine pass by a proxy that the environment names."""
    if not _find_proxy():
        return
    for name in ("no_proxy", "NO_PROXY"):  # libraries read the one or the other
        known = [one.strip() for one in os.environ.get(name, "").split(",") if one.strip()]
        os.environ[name] = ",".join([*known, *(one for one in _LOCAL if one not in known)])


def describe_proxy() -> str:
    """Which proxy may be in the way of a server that does not answer, as the end of a line; else empty."""
    name = _find_proxy()
    if not name:
        return ""
    address = hide_secrets(os.environ[name])
    return f"; {name} sends requests through {address}: if that is in the way, name the server in NO_PROXY"


def _find_proxy() -> str:
    names = (form for name in _PROXIES for form in (name, name.lower()))
    return next((name for name in names if os.environ.get(name)), "")
