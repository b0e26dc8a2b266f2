"""The pages as one process: Streamlit behind a check of hosts, never inside another site's frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import uvicorn
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit import config
from streamlit.starlette import App

_OPTIONS = {
    "browser.gatherUsageStats": False,
    "server.fileWatcherType": "none",
    "server.maxUploadSize": 64,  # MB
    "server.enableCORS": True,  # pages of other origins get no answer
    "server.enableXsrfProtection": True,
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "logger.level": "warning",
    "theme.light.primaryColor": "#1d4ed8",  # red and green are the verdicts'
    "theme.dark.primaryColor": "#60a5fa",
}
_HEADERS = {
    b"x-frame-options": b"SAMEORIGIN",
    # whatever a name or note says in Markdown, no picture is loaded from elsewhere and no form sent there
    b"content-security-policy": b"frame-ancestors 'self'; img-src 'self' data: blob:; "
    b"media-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
}
_STOP_SECONDS = 5  # a browser that keeps its connection does not hold the process


def serve_page(*, host: str, port: int, allowed_hosts: Sequence[str]) -> None:
    """Serve the page until the process is told to stop.

    Args:
        host: address to listen on.
        port: port to listen on.
        allowed_hosts: names under which browsers may ask for the page; any other name gets 400, so that a
            foreign site cannot take the page over by pointing its own name at this machine.
    """
    for key, value in _OPTIONS.items():
        config.set_option(key, value)

    middleware = [
        Middleware(_Headers),
        Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False),
    ]
    app = App(Path(__file__).with_name("app.py"), middleware=middleware)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        timeout_graceful_shutdown=_STOP_SECONDS,
        proxy_headers=False,  # who connects is known by the connection alone
    )


class _Headers:
    """Adds the headers that keep other sites' pages away to each answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_HEADERS.items()]}
            await send(message)

        await self._app(scope, receive, send_with_headers)
