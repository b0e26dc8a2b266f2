"""A team's webhook, for tests: a real HTTP server that keeps what it is told."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Delivery:
    """One POST: headers in lower case, and the body as it came."""

    headers: dict[str, str]
    body: str

    @property
    def content(self) -> dict[str, Any]:
        """The body as JSON."""
        return json.loads(self.body)

    def is_signed(self, secret: str, *, prefix: str) -> bool:
        """Whether the HMAC of id, time and body is right.

        Args:
            secret: key that sender and receiver share.
            prefix: of the header's names, `webhook` or `x-mlflow`.
        """
        names = ("delivery-id" if prefix == "x-mlflow" else "id", "timestamp")
        parts = [self.headers[f"{prefix}-{name}"] for name in names]
        content = ".".join([*parts, self.body]).encode()
        digest = hmac.new(secret.encode(), content, hashlib.sha256).digest()
        return self.headers[f"{prefix}-signature"] == f"v1,{base64.b64encode(digest).decode()}"


class Receiver:
    """Where to send, and what came; `failures` answers with status 503 that often first."""

    def __init__(self, address: str, deliveries: list[Delivery]) -> None:
        self.address = address
        self.deliveries = deliveries
        self.failures = 0

    def wait_for(self, count: int, *, seconds: float = 30.0) -> list[Delivery]:
        """The deliveries once there are so many."""
        deadline = time.monotonic() + seconds
        while len(self.deliveries) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(self.deliveries) >= count, [d.body for d in self.deliveries]
        return self.deliveries


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver for the length of a block."""
    deliveries: list[Delivery] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if receiver.failures:
                receiver.failures -= 1
                self.send_response(503)
            else:
                headers = {key.lower(): value for key, value in self.headers.items()}
                deliveries.append(Delivery(headers, body))
                self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_port}/", deliveries)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
