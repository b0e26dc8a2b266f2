"""Servers for tests of sources: files by HTTP with its mishaps, and a wire that is cut."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_CHUNK = 1 << 14


@dataclass
class Web:
    """What a server serves, and what happened.

    Attributes:
        files: bytes by path, such as `/set.zip`.
        cuts: after so many bytes the connection of a path ends, once for each entry.
        statuses: answers of a path before it behaves, such as 503.
        pages: bytes by path that are served as a web page.
        answers: status and XML by path, as a server of S3 answers; the query does not count.
        tags: ETag by path, where it is an odd one.
        requests: path and Range header of every request.
        pause: seconds after each 16 KiB of a file.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    pages: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    address: str = ""
    pause: float = 0.0


@contextmanager
def running_web(web: Web):
    """Serve on a free port for the length of a `with` block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments):
            """Stay quiet."""

        def do_GET(self):  # the library's name
            asked = self.headers.get("Range", "")
            web.requests.append((self.path, asked))
            if self.path == "/loop":
                self.answer(302, {"Location": "/loop"})
            elif web.statuses.get(self.path):
                self.answer(web.statuses[self.path].pop(0))
            elif self.path.partition("?")[0] in web.answers:
                status, body = web.answers[self.path.partition("?")[0]]
                self.answer(status, {"Content-Type": "application/xml"}, body)
            elif self.path in web.pages:
                body = web.pages[self.path]
                self.answer(200, {"Content-Type": "text/html; charset=utf-8"}, body)
            elif self.path in web.files:
                self.send_file(web.files[self.path], asked)
            else:
                self.answer(404)

        def send_file(self, body, asked):
            tag = web.tags.get(self.path, f'"{hash(body):x}"')
            headers = {"ETag": tag, "Content-Type": "application/octet-stream"}
            if self.headers.get("If-None-Match") == tag:
                self.answer(304, headers)
                return
            status, start = 200, 0
            if asked and self.headers.get("If-Range", tag) == tag:
                status, start = 206, int(asked.removeprefix("bytes=").rstrip("-"))
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            cuts = web.cuts.get(self.path, [])
            stop = cuts.pop(0) if cuts else None
            self.answer(status, headers, body[start:], stop)

        def answer(self, status, headers=None, body=b"", stop=None):
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if status != 304:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):
                self.send_body(body[:stop])
            self.close_connection = self.close_connection or stop is not None

        def send_body(self, body):
            if not web.pause:
                self.wfile.write(body)
                return
            for start in range(0, len(body), _CHUNK):
                self.wfile.write(body[start : start + _CHUNK])
                time.sleep(web.pause)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    web.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()


class Wire:
    """A TCP connection to a server that ends after so many bytes, once for each entry of `cuts`.

    Args:
        target: host and port behind it.
        cuts: bytes from the server after which a connection is cut; only one that gets that far counts.

    Attributes:
        passed: bytes that came from the server.
    """

    def __init__(self, target: tuple[str, int], cuts: list[int]) -> None:
        self.cuts = cuts
        self.passed = 0
        self._target = target
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Wire:
        """Start to listen."""
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Stop to listen."""
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                for pump, ends in ((self._up, (client, server)), (self._down, (server, client))):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    def _up(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(_CHUNK):
                target.sendall(chunk)
        self._close(source, target)

    def _down(self, source: socket.socket, target: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while chunk := source.recv(_CHUNK):
                passed += len(chunk)
                with self._lock:
                    self.passed += len(chunk)
                    is_cut = bool(self.cuts) and passed > self.cuts[0]
                    if is_cut:
                        self.cuts.pop(0)
                if is_cut:
                    break
                target.sendall(chunk)
        self._close(source, target)

    @staticmethod
    def _close(*ends: socket.socket) -> None:
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
