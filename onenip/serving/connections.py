"""HTTP connections with limits: a slow client loses its connection, and there are never too many.

uvicorn's own protocol waits without end for the rest of a request, and its server accepts connections until
the process runs out of file descriptors.
"""

from __future__ import annotations

import asyncio
import sys

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = (
    10.0  # for the whole header of a request, from the connection or the last answer on
)
_LEFTOVER_SECONDS = 10.0  # for the rest of a body whose request was answered already
_SHUTDOWN_SECONDS = 10  # for requests that are being answered when the server is stopped
_MAX_CONNECTIONS = 1024
_OTHER_FILES = 64  # descriptors that are kept for everything else
_TURNS = 4  # of the event loop, until a connection that is one too many is closed
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n"
    b"Retry-After: 1\r\n\r\n"
)


def run_server(app: ASGIApp, *, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests at hand, for 10 seconds at most."""
    uvicorn.Server(configure(app, host=host, port=port)).run()


def configure(app: ASGIApp, *, host: str, port: int) -> uvicorn.Config:
    """Settings of uvicorn: connections with limits, no WebSockets, a shutdown that ends."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=LimitedConnection,
        ws="none",
        backlog=_count_accepted(),
        proxy_headers=False,  # who connects is known by the connection alone
        log_level="warning",
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )


class LimitedConnection(H11Protocol):
    """A connection that is closed when its client takes too long to send a request."""

    _phase = (
        ""  # what the client owes: "header", "leftover" of an answered request's body, or nothing
    )
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it when there are too many."""
        super().connection_made(transport)
        if len(self.connections) > _count_allowed():
            transport.write(_FULL)
            transport.close()
            return
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._clear_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what came; bytes that are no HTTP end the connection."""
        if self.transport.is_closing():
            return
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # they came behind a request that was answered already
            self.transport.abort()
        else:
            self._set_deadline()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._set_deadline()

    def _set_deadline(self) -> None:
        phase = ""
        if self.conn.their_state is h11.IDLE:
            phase = "header"
        elif self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete:
            phase = "leftover"
        if phase == self._phase:
            return
        self._clear_deadline()
        self._phase = phase
        if phase:
            seconds = HEADER_SECONDS if phase == "header" else _LEFTOVER_SECONDS
            self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _clear_deadline(self) -> None:
        self._phase = ""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def _count_allowed() -> int:
    """Number of connections that leave file descriptors for everything else."""
    files = _count_files() - _OTHER_FILES - _TURNS * _count_accepted()
    return max(1, min(_MAX_CONNECTIONS, files))


def _count_accepted() -> int:
    """Number of connections that are accepted at once, before anybody counts them."""
    return max(1, min(256, _count_files() // 16))


def _count_files() -> int:
    """Number of files and connections that the process may have open."""
    if sys.platform == "win32":
        return 2 * _MAX_CONNECTIONS
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
