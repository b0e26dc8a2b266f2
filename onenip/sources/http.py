"""Files by HTTP(S): resumed by range after a cut, checked by sha256.

tenacity repeats a request; each repetition asks only for the bytes that are missing.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import socket
from dataclasses import dataclass
from pathlib import Path

import httpx
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)
from tqdm import tqdm

from onenip.addresses import hide_secrets
from onenip.errors import SourceError, SourceUnreachableError
from onenip.images import hash_file

logger = logging.getLogger(__name__)

ATTEMPTS = 6
_TIMEOUT_SECONDS = 30.0
_WEB_PAGE = "a web page came instead of a file; open it in a browser to see why"
_HINTS = {
    401: "it asks for a login",
    403: "access is denied",
    404: "there is no such file; check the address, or name a mirror in download.urls",
    410: "the file is gone; name a mirror in download.urls",
}


class _ServerBusyError(Exception):
    """The server asked to come again: 429 or 5xx."""


@dataclass(frozen=True)
class Downloaded:
    """A complete file, or the news that it is still the one of last time.

    Attributes:
        path: the file; None if unchanged.
        sha256: of its bytes, 64 hex digits; "" if unchanged.
        tag: the server's name for this version: its ETag, else the date of its last change, else "".
    """

    path: Path | None
    sha256: str
    tag: str


def download(
    url: str, path: Path, *, sha256: str = "", known_tag: str = "", wait_seconds: float = 1.0
) -> Downloaded:
    """Fetch a file, going on where an earlier, killed download stopped.

    Args:
        url: http or https.
        path: where the file appears once it is complete and checked; `<path>.part` until then.
        sha256: what it must be, 64 hex digits; "" means anything.
        known_tag: of the version at hand; nothing is fetched if the server still has that one.
        wait_seconds: the first pause before another attempt; it doubles.

    Raises:
        SourceError: if the server refuses, answers with a web page, is cut off again and again, or sends
            other bytes than `sha256`; nothing wrong is kept.
    """
    shown = hide_secrets(url)
    tag_file = path.with_name(path.name + ".tag")
    if path.is_file():
        return check_file(shown, path, sha256, _read_tag(tag_file))
    retrying = Retrying(
        retry=retry_if_exception(_is_worth_a_retry),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential_jitter(multiplier=wait_seconds, max=30, jitter=wait_seconds),
        before_sleep=_log_pause,
        reraise=True,
    )
    try:
        hooks = {"response": [_refuse_private_redirect]}
        with httpx.Client(
            follow_redirects=True, timeout=_TIMEOUT_SECONDS, event_hooks=hooks
        ) as client:
            if retrying(_transfer, client, url, path, known_tag):
                return Downloaded(None, "", known_tag)
    except httpx.TooManyRedirects as error:
        raise SourceError(f"{shown}: redirects in a circle; check the address") from error
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, UnicodeError) as error:
        raise SourceError(f"{shown}: not an address to download from") from error
    except (httpx.TransportError, _ServerBusyError) as error:
        raise SourceUnreachableError(
            f"{shown}: cut off after {ATTEMPTS} attempts ({error or type(error).__name__}); "
            "run the same command again to go on from there"
        ) from error
    return check_file(shown, path, sha256, _read_tag(tag_file))


def check_file(name: str, path: Path, sha256: str, tag: str, *, keep: bool = False) -> Downloaded:
    """A complete file as `Downloaded`, if its bytes are what they must be.

    Args:
        name: what to call it in errors.
        path: the file.
        sha256: what it must be, 64 hex digits; "" means anything.
        tag: the server's name for this version.
        keep: leave a wrong file where it is, because it is the user's own.

    Raises:
        SourceError: if it is a web page, or its checksum is another.
    """
    with path.open("rb") as file:
        head = file.read(512).lstrip().lower()
    found = hash_file(path)
    if head.startswith((b"<!doctype", b"<html")):
        problem = _WEB_PAGE
    elif sha256 and found != sha256.lower():
        problem = f"wrong checksum: sha256 {found} instead of {sha256}; it was not used"
    else:
        return Downloaded(path, found, tag)
    if not keep:
        path.unlink()
        path.with_name(path.name + ".tag").unlink(missing_ok=True)
    raise SourceError(f"{name}: {problem}")


def _transfer(client: httpx.Client, url: str, path: Path, known_tag: str) -> bool:
    """Bring what is missing of the file; returns whether the known version is still the current one."""
    part = path.with_name(path.name + ".part")
    tag_file = path.with_name(path.name + ".tag")
    tag = _read_tag(tag_file)
    begun = part.stat().st_size if part.is_file() and tag else 0
    headers = {"Accept-Encoding": "identity"}
    if begun:
        headers |= {"Range": f"bytes={begun}-", "If-Range": tag}
    elif known_tag:
        is_date = not known_tag.startswith(('"', "W/"))
        headers["If-Modified-Since" if is_date else "If-None-Match"] = known_tag
    with client.stream("GET", url, headers=headers) as reply:
        if reply.status_code == 304:
            return True
        if reply.status_code == 416:  # nothing is missing, or the file became another
            part.unlink()
            raise _ServerBusyError("the file changed meanwhile")
        _check_reply(hide_secrets(url), reply)
        if reply.status_code != 206:
            begun = 0
        tag = _tag_of(reply)
        tag_file.write_text(json.dumps(tag), encoding="utf-8")
        total = begun + int(reply.headers.get("Content-Length", 0))
        with (
            part.open("ab" if begun else "wb") as file,
            tqdm(
                desc=hide_secrets(url).rpartition("/")[2],
                total=total or None,
                initial=begun,
                unit="B",
                unit_scale=True,
                disable=None,
            ) as bar,
        ):
            for chunk in reply.iter_raw():  # as it comes: nothing is lost in a cut
                file.write(chunk)
                bar.update(len(chunk))
    part.replace(path)
    return False


def _refuse_private_redirect(reply: httpx.Response) -> None:
    """Keep a server from leading into the network that this machine is in.

    Raises:
        SourceError: if a public host redirects to one of a private network, or of this machine.
    """
    if not reply.has_redirect_location:
        return
    try:
        target = reply.url.join(reply.headers["Location"])
    except httpx.InvalidURL:  # the client says so itself
        return
    if _is_private(target.host) and not _is_private(reply.url.host):
        shown = hide_secrets(str(reply.url))
        raise SourceError(f"{shown}: refused, it redirects to {target.host} in a private network")


def _is_private(host: str) -> bool:
    """Whether a host lies in no public network; one that has no address here does not count."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False
    return any(not ipaddress.ip_address(str(one).partition("%")[0]).is_global for one in found)


def _check_reply(url: str, reply: httpx.Response) -> None:
    if reply.status_code == 429 or reply.status_code >= 500:
        raise _ServerBusyError(f"status {reply.status_code}")
    if reply.status_code not in (200, 206):
        hint = _HINTS.get(reply.status_code, "the server refused")
        raise SourceError(f"{url}: status {reply.status_code}: {hint}")
    if reply.headers.get("Content-Type", "").startswith("text/html"):
        raise SourceError(f"{url}: {_WEB_PAGE}")


def _is_worth_a_retry(error: BaseException) -> bool:
    is_cut = isinstance(error, httpx.TransportError | _ServerBusyError)
    return is_cut and not isinstance(error, httpx.UnsupportedProtocol)


def _tag_of(reply: httpx.Response) -> str:
    """A tag that names these very bytes; weak ETags do not, nor any that cannot be sent back."""
    etag, changed = (str(reply.headers.get(name, "")) for name in ("ETag", "Last-Modified"))
    tag = changed if not etag or etag.startswith("W/") else etag
    return tag if tag.isascii() else ""


def _read_tag(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return ""


def _log_pause(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    logger.warning("interrupted (%s), going on: attempt %d", error, state.attempt_number + 1)
