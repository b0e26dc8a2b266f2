"""The process of `onenip inspect`: whom it answers, and how it ends."""

import socket

import httpx
import psutil
import pytest

from tests.test_interfaces import find_port, start


def upgrade(port, **headers):
    """Status line of an attempt to open the page's WebSocket, as a browser makes it."""
    fields = {
        "Host": f"127.0.0.1:{port}",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        **headers,
    }
    lines = "".join(f"{key}: {value}\r\n" for key, value in fields.items())
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(f"GET /_stcore/stream HTTP/1.1\r\n{lines}\r\n".encode())
        return connection.recv(100).split(b"\r\n")[0].decode()


@pytest.mark.timeout(240)
def test_the_page_answers_its_own_address_alone_and_ends_when_told(tmp_path, monkeypatch):
    """Foreign names and origins are refused, no site may frame it, and SIGTERM leaves no process."""
    monkeypatch.chdir(tmp_path)
    port = find_port()
    address = f"http://127.0.0.1:{port}"
    process = start(["onenip", "inspect", "--port", str(port)], f"{address}/_stcore/health")
    try:
        page = httpx.get(address)
        rebound = httpx.get(address, headers={"Host": f"evil.example:{port}"})
        own, foreign, renamed = (
            upgrade(port, Origin=address),
            upgrade(port, Origin="http://evil.example"),
            upgrade(port, Host="evil.example", Origin="http://evil.example"),
        )
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.terminate()
        ended = process.wait(60)

    assert page.headers["x-frame-options"] == "SAMEORIGIN"
    assert "frame-ancestors 'self'" in page.headers["content-security-policy"]
    assert "img-src 'self' data: blob:" in page.headers["content-security-policy"]
    assert rebound.status_code == 400
    assert own.startswith("HTTP/1.1 101")
    assert foreign.startswith("HTTP/1.1 403")
    assert not renamed.startswith("HTTP/1.1 101")
    assert ended in (0, -15)
    assert not [one for one in family if one.is_running()]
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)
