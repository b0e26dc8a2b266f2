"""What is checked of a request before its body is read: key, length, and room for it.

Promises that a refused request costs no memory, that a body is read whole or not at all, and that every
answer of 4xx or 5xx is counted. Knows nothing of images.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_PATHS = ("/health", "/ready", "/metrics", "/docs", "/openapi.json", "/static-offline-docs")
_BODY_SECONDS = 10.0  # for any body, and
_BODY_BYTES_PER_SECOND = 500_000  # one second more for each of these
_MIN_HELD_BYTES = 256 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Limits of requests.

    Attributes:
        api_key: key that a client must send as `X-API-Key`; empty asks for none.
        max_bytes: of a body.
    """

    api_key: str = ""
    max_bytes: int = 32 << 20


class Guard:
    """ASGI middleware that refuses requests before their bodies are read.

    Args:
        app: gets a request once its whole body is there.
        limits: of requests.
        on_refusal: called with the status of each answer of 4xx or 5xx.
    """

    def __init__(self, app: ASGIApp, limits: Limits, on_refusal: Callable[[int], None]) -> None:
        self._app = app
        self._limits = limits
        self._on_refusal = on_refusal
        self._held_bytes = 0
        self._max_held_bytes = max(_MIN_HELD_BYTES, 2 * limits.max_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def count(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if message["status"] >= 400:
                    self._on_refusal(message["status"])
            await send(message)

        try:
            await self._answer(scope, receive, count)
        except ClientDisconnect:
            log.debug("a client left before its request was read")
        except asyncio.CancelledError:  # the server stops, and waited long enough
            if not started:
                await _refuse(503, "the server stops")(scope, receive, count)
        except Exception:
            log.exception("%s %s failed", scope["method"], ascii(scope["path"][:80]))
            if not started:
                await _refuse(500, "the server failed; its log says why")(scope, receive, count)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if not self._is_allowed(scope["path"], headers):
            await _refuse(401, "wrong or missing X-API-Key")(scope, receive, send)
            return
        is_open = _is_open(scope["path"])
        if not self._limits.api_key and _is_of_another_page(headers, is_open=is_open):
            detail = (
                "a web page of another site; with ONENIP_API_KEY set, pages need the key instead"
            )
            await _refuse(403, detail)(scope, receive, send)
            return
        if b"transfer-encoding" in headers:
            detail = "a transfer encoding is refused; send Content-Length"
            await _refuse(411, detail, {"Connection": "close"})(scope, receive, send)
            return
        length = headers.get(b"content-length", b"")
        if not length.isdigit() and (length or scope["method"] == "POST"):
            await _refuse(411, "Content-Length is needed")(scope, receive, send)
            return
        size = int(length or b"0")
        if size > self._limits.max_bytes:
            detail = f"a request may have {self._limits.max_bytes} bytes, not {size}"
            await _refuse(413, detail)(scope, receive, send)
            return
        if self._held_bytes + size > self._max_held_bytes:
            detail = "too many requests wait; try again in a moment"
            await _refuse(503, detail, {"Retry-After": "1"})(scope, receive, send)
            return
        self._held_bytes += size
        try:
            body = await _read_body(receive, size)
            if body is None:
                detail = "the body came too slowly"
                await _refuse(408, detail, {"Connection": "close"})(scope, receive, send)
                return
            await self._app(scope, _replay(body, receive), send)
        finally:
            self._held_bytes -= size

    def _is_allowed(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if not self._limits.api_key or _is_open(path):
            return True
        key = headers.get(b"x-api-key", b"")
        return secrets.compare_digest(key, self._limits.api_key.encode())


def _is_open(path: str) -> bool:
    return any(path == one or path.startswith(f"{one}/") for one in OPEN_PATHS)


def _is_of_another_page(headers: dict[bytes, bytes], *, is_open: bool) -> bool:
    """Whether a browser sends this for a page that did not come from here, or under a rebound name.

    Args:
        headers: of the request.
        is_open: whether everybody may ask for its path.
    """
    host = headers.get(b"host", b"").decode("latin-1")
    origin = headers.get(b"origin")
    if origin is not None:
        site = origin.decode("latin-1").rpartition("//")[2]
        return site != host or not _is_own_name(site)
    # a page under a rebound name reads without an origin; only browsers name languages, and always do
    return not is_open and b"accept-language" in headers and not _is_own_name(host)


def _is_own_name(site: str) -> bool:
    """Whether a host, with or without its port, is an address or a name of this network."""
    name = site.rpartition(":")[0] if site.rpartition(":")[2].isdigit() else site
    return "." not in name or name.replace(".", "").isdigit()


def _refuse(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)


async def _read_body(receive: Receive, size: int) -> list[bytes] | None:
    """The body in one piece; None if it does not come in time.

    Raises:
        ClientDisconnect: if the client leaves before.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS + size / _BODY_BYTES_PER_SECOND):
            more = size > 0
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                body += message.get("body", b"")
                more = message.get("more_body", False)
    except TimeoutError:
        return None
    return [bytes(body)]


def _replay(body: list[bytes], receive: Receive) -> Receive:
    """A `receive` that gives a body once, and keeps no reference to it afterwards."""

    async def replay() -> Message:
        if body:
            return {"type": "http.request", "body": body.pop(), "more_body": False}
        return await receive()

    return replay
