"""Attacks on `onenip serve`: odd bodies, odd headers, slow clients, floods; over real connections."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient

from onenip.serving import connections
from onenip.serving.champions import Follower
from onenip.serving.web import ServeSettings, build_app
from tests.drill import damage

KEY = "secret"
MAX_BYTES = 300_000


@pytest.fixture(scope="module")
def image(tiny_data):
    return next((tiny_data / "disc/test/spot").iterdir()).read_bytes()


@pytest.fixture(scope="module")
def client(tiny_model):
    app = build_app(Follower.of_folder(tiny_model), ServeSettings(max_bytes=MAX_BYTES))
    with TestClient(app, raise_server_exceptions=False) as found:
        yield found


def to_json(image, **more):
    return json.dumps({"image": base64.b64encode(image).decode(), **more})


def ask(client, path, content, kind):
    return client.post(path, content=content, headers={"Content-Type": kind})


@pytest.mark.parametrize("form", ["lines", "data", "url-safe", "unpadded", "marked", "percent"])
def test_base64_is_taken_in_its_usual_forms(client, image, form):
    """Line breaks, a data: prefix, the URL-safe alphabet and missing padding give the same image."""
    text = base64.b64encode(image).decode()
    texts = {
        "lines": base64.encodebytes(image).decode(),
        "data": f"data:image/png;base64,{text}",
        "url-safe": base64.urlsafe_b64encode(image).decode(),
        "unpadded": text.rstrip("="),
        "marked": f"\ufeff {text}\u00a0",
        "percent": f" data:image/png;base64,{text.replace('+', '%2B').replace('=', '%3D')}",
    }

    answer = client.post("/predict", json={"image": texts[form], "category": "disc"})
    plain = client.post("/predict", json={"image": text, "category": "disc"})

    assert answer.json()["score"] == plain.json()["score"]


@pytest.mark.parametrize(
    ("content", "kind", "code", "words"),
    [
        (b"\x89PNG\xff\xfe\x00raw", "image/png", 415, "/predict/file"),
        (b"\x89PNG\xff\xfe\x00raw", "application/x-www-form-urlencoded", 415, "/predict/file"),
        (b"--x\r\n\r\n--x--", "multipart/form-data; boundary=x", 415, "/predict/file"),
        (b"\x89PNG\xff\xfe\x00raw", "application/json", 422, "Invalid JSON"),
        (b'{"image": "QUJD", "category": "\\ud800"}', "application/json", 422, "Invalid JSON"),
        (b'{"image": NaN}', "application/json", 422, "image"),
        (b'{"image": "QUJD", "category": NaN}', "application/json", 422, "category"),
        (b'{"image": "QUJD", "category": 7}', "application/json", 422, "category"),
        (b'{"image": "QUJD", "categroy": "disc"}', "application/json", 422, "categroy: unknown"),
        (b'{"image": "%%%"}', "application/json", 422, "not base64"),
        (b'{"image": "QUJD", "image" : "QUJE"}', "application/json", 422, "image: given twice"),
        (b'{"image": "\xc3\xa4"}', "application/json", 422, "not base64"),
        (b"[" * 100_000, "application/json", 422, "Invalid JSON"),
        (b'{"image": "QUJD", "category": "' + b"x" * 200_000 + b'"}', "application/json", 422, "255"),
        (b'{"' + b"x" * 200_000 + b'": 1}', "application/json", 422, "image: Field required"),
        (b"", "application/json", 422, "Invalid JSON"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value)[:20],
)  # fmt: skip
def test_odd_bodies_are_refused_in_a_sentence(client, caplog, content, kind, code, words):
    """Each gets 4xx that says what to send; neither the answer nor the log repeats the body."""
    answer = ask(client, "/predict", content, kind)

    assert answer.status_code == code
    assert words in answer.json()["detail"]
    assert len(answer.content) < 500
    assert not caplog.text


def make_form(*parts, charset=""):
    """A multipart body of (name, file name or None, content) with its content type."""
    lines = []
    for name, file, content in parts:
        named = f'; filename="{file}"' if file else ""
        lines += [b"--x", f'Content-Disposition: form-data; name="{name}"{named}'.encode()]
        lines += [b"", content]
    return b"\r\n".join([*lines, b"--x--", b""]), f"multipart/form-data; boundary=x{charset}"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([("file", "a.png", b"1"), ("file", "b.png", b"2")], "Too many files"),
        ([("file", "a.png", b"1"), ("kategorie", None, b"disc")], "kategorie: unknown field"),
        ([("picture", "a.png", b"1")], "picture: unknown field"),
        ([("category", None, b"disc")], "file: missing"),
        ([("file", None, b"no file")], "file: missing"),
        ([("file", None, b"x" * 100_000)], "needs a file name"),
        ([("file", "a.png", b"1"), ("category", None, b"x" * 300)], "category"),
    ],
)
def test_odd_forms_are_refused_in_a_sentence(client, parts, words):
    """A second file, an unknown field, a missing file, a huge field: 422 that names it."""
    answer = ask(client, "/predict/file", *make_form(*parts))

    assert answer.status_code == 422
    assert words in answer.json()["detail"]


def test_a_byte_order_mark_before_json_is_passed_over(client, image):
    """As PowerShell writes it."""
    answer = ask(client, "/predict", b"\xef\xbb\xbf" + to_json(image).encode(), "application/json")

    assert answer.status_code == 200


@pytest.mark.parametrize("charset", ["unicode_escape", "utf-7", "rot13", "no-such"])
def test_a_forms_charset_breaks_nothing(client, image, charset):
    """Half a character, in whatever way it is written, is refused or unknown, never a fault."""
    parts = ("file", "a.png", image), ("category", None, b"\\ud800")

    answer = ask(client, "/predict/file", *make_form(*parts, charset=f"; charset={charset}"))

    assert answer.status_code in (404, 422)


def test_broken_forms_are_refused(client):
    """Cut or senseless forms are 4xx."""
    whole, kind = make_form(("file", "a.png", b"1234"))
    for content in (b"", b"senseless", whole[:-20], whole[:30], whole.replace(b"--x", b"--y")):
        assert ask(client, "/predict/file", content, kind).status_code == 422
    assert ask(client, "/predict/file", whole, "multipart/form-data").status_code == 422


_PIECES = (
    b"\\ud800",
    b"NaN",
    b"\x00",
    b"--x",
    b"\r\n",
    b'"',
    b"{",
    b"[",
    b"; charset=utf-16",
    b"%ff",
)


@pytest.mark.drill
def test_mutated_requests_are_answered_or_refused(client, image, drill):
    """Of many requests with damaged bodies and content types none is a fault of the server."""
    rng, count = drill.draw(), drill.choose(300, 3000)
    drill.note("damaged requests", count)
    form, kind = make_form(("file", "a.png", image), ("category", None, b"disc"))
    whole = {
        "/predict": (to_json(image, category="disc").encode(), b"application/json"),
        "/predict/file": (form, kind.encode()),
    }
    codes = Counter()
    for number in range(count):
        path = rng.choice(list(whole))
        content, sent = whole[path]
        if number % 5 == 0:
            sent = damage(sent, rng, _PIECES).translate(None, b"\r\n\x00")
        headers = [(b"content-type", sent)]
        codes[
            client.post(path, content=damage(content, rng, _PIECES), headers=headers).status_code
        ] += 1

    assert set(codes) <= {200, 404, 413, 415, 422}


def test_the_address_takes_no_parameters(client, image):
    """A category in the address is not ignored."""
    answer = ask(client, "/predict?category=disc", to_json(image), "application/json")

    assert answer.status_code == 422
    assert "put it into the body" in answer.json()["detail"]


def test_a_mistyped_category_gets_the_closest_name(client, image):
    """The answer names the served categories and the one that was meant."""
    answer = ask(client, "/predict", to_json(image, category="dics"), "application/json")

    assert answer.status_code == 404
    expected = "unknown category 'dics'; served categories: disc, stripes; did you mean 'disc'?"
    assert answer.json()["detail"] == expected


@pytest.mark.parametrize(
    ("origin", "host", "code"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", 200),
        ("http://localhost:8000", "localhost:8000", 200),
        ("http://[::1]:8000", "[::1]:8000", 200),
        ("http://serve:8000", "serve:8000", 200),
        ("http://evil.example", "127.0.0.1:8000", 403),
        ("http://203.0.113.9", "127.0.0.1:8000", 403),
        ("http://evil.example:8000", "evil.example:8000", 403),
        ("null", "127.0.0.1:8000", 403),
    ],
)
def test_without_a_key_no_page_of_another_site_is_answered(client, image, origin, host, code):
    """Neither one that another site sent, nor one whose name was pointed at this machine afterwards."""
    answer = client.post(
        "/predict/file", files={"file": image}, headers={"Origin": origin, "Host": host}
    )

    assert answer.status_code == code


@pytest.mark.parametrize(
    ("path", "host", "languages", "code"),
    [
        ("/status", "evil.example:8000", "en", 403),
        ("/categories", "evil.example:8000", "*", 403),
        ("/categories", "127.0.0.1:8000", "en", 200),
        ("/categories", "serve:8000", "en", 200),
        ("/categories", "inspect.plant.example:8000", None, 200),
        ("/health", "inspect.plant.example:8000", "en", 200),
    ],
)
def test_without_a_key_no_browser_reads_under_a_rebound_name(client, path, host, languages, code):
    """A page reads from its own name without an origin; programs, which name no language, are answered."""
    headers = {"Host": host} | ({"Accept-Language": languages} if languages else {})

    assert client.get(path, headers=headers).status_code == code


@contextmanager
def serve(app):
    """Port of a real server in a thread; the server must end when it is told to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(connections.configure(app, host="127.0.0.1", port=port))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        thread.join(0.01)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def port(tiny_model):
    settings = ServeSettings(api_key=KEY, max_bytes=MAX_BYTES)
    with serve(build_app(Follower.of_folder(tiny_model), settings)) as found:
        yield found


def send(port, content):
    """A connection on which something was sent."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(content)
    return connection


def read(connection):
    """All that a server answers until it closes; a reset counts as closed."""
    found = b""
    with connection:
        try:
            while part := connection.recv(65_536):
                found += part
        except ConnectionResetError:
            pass
    return found


def read_status(connection):
    """Status of the first answer on a connection that stays open."""
    with connection:
        return int(connection.recv(65_536).split()[1])


HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
ALLOWED = HEAD + b"X-API-Key: secret\r\n"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (HEAD + b"Content-Length: 1000\r\n\r\n", 401),
        (HEAD + b"Content-Length: 99999999999\r\n\r\n", 401),
        (HEAD + b"X-API-Key: \xff\xfe\r\nContent-Length: 4\r\n\r\n", 401),
        (ALLOWED + b"Content-Length: 99999999999\r\n\r\n", 413),
        (ALLOWED + b"Content-Length: 300001\r\nExpect: 100-continue\r\n\r\n", 413),
        (ALLOWED + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (ALLOWED + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", 411),
        (ALLOWED + b"\r\n", 411),
        (ALLOWED + b"Content-Length: -4\r\n\r\n", 400),
        (ALLOWED + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /categories HTTP/1.1\r\nHost: x\r\n\r\n", 401),
        (b"GET /predict/../categories HTTP/1.1\r\nHost: x\r\n\r\n", 401),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    ],
)
def test_a_request_is_refused_before_its_body_is_read(port, content, code):
    """Key first, then length: the answer comes although no body was sent."""
    assert read_status(send(port, content)) == code


def test_slow_clients_lose_their_connections(tiny_model, monkeypatch, image):
    """Half a header, half a body, an endless body: closed in time, and others are answered meanwhile."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(connections, "_LEFTOVER_SECONDS", 0.5)
    monkeypatch.setattr("onenip.serving.guard._BODY_SECONDS", 0.5)
    app = build_app(Follower.of_folder(tiny_model), ServeSettings(max_bytes=MAX_BYTES))
    with serve(app) as port:
        slow = {
            "silence": [send(port, b"") for _ in range(100)],
            "half a header": [send(port, HEAD) for _ in range(300)],
            "half a body": [
                send(port, HEAD + b"Content-Length: 90\r\n\r\nhalf") for _ in range(20)
            ],
            "a refused body": [send(port, HEAD + b"Content-Length: 900000\r\n\r\n")],
            "a second header": [send(port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" + HEAD)],
        }
        body = to_json(image, category="disc").encode()
        whole = HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
        assert read_status(send(port, whole)) == 200
        answers = {kind: [read(one) for one in found] for kind, found in slow.items()}

    assert set(answers["silence"]) == set(answers["half a header"]) == {b""}
    assert {answer.split()[1] for answer in answers["half a body"]} == {b"408"}
    assert answers["a refused body"][0].split()[1] == b"413"
    assert answers["a second header"][0].count(b"HTTP/1.1") == 1


def test_connections_are_limited(tiny_model, monkeypatch):
    """One more than may be is refused; once others have gone, the next one is answered."""
    monkeypatch.setattr(connections, "_MAX_CONNECTIONS", 8)
    with serve(build_app(Follower.of_folder(tiny_model), ServeSettings())) as port:
        held = [send(port, b"GET") for _ in range(8)]
        refused = read(send(port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"))
        for one in held:
            one.close()
        answer = b"503"
        while answer == b"503":
            connection = send(port, b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = read(connection).split()[1]

    assert refused.startswith(b"HTTP/1.1 503")
    assert answer == b"200"


FEW_FILES = """
import resource, sys
from onenip.serving import connections

async def answer(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

connections.HEADER_SECONDS = 0.5
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
connections.run_server(answer, host="127.0.0.1", port=int(sys.argv[1]))
"""


@pytest.mark.slow  # whom the kernel's short queue drops comes again after a second, or three
def test_a_flood_of_connections_takes_no_file_descriptor_too_many():
    """Where 256 files may be open, 400 clients at once are held or refused, and nothing is logged."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", FEW_FILES, str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        whole = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

        def ask():
            try:
                return read(send(port, whole))
            except ConnectionRefusedError:  # it starts
                return b""

        while not ask():
            assert server.poll() is None
        held = [send(port, HEAD) for _ in range(400)]
        answers = [ask()]
        while not answers[-1].startswith(b"HTTP/1.1 200"):
            answers.append(ask())
        for one in held:
            one.close()
        server.terminate()
        logged = server.communicate(timeout=60)[1]

    assert all(one.startswith((b"HTTP/1.1 200", b"HTTP/1.1 503")) for one in answers)
    assert logged == ""


def test_who_connects_is_known_by_the_connection_alone(monkeypatch):
    """No header makes a client the proxy that may say who logged in, whatever uvicorn is told to trust."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    clients = []

    async def app(scope, _receive, send):
        if scope["type"] == "http":
            clients.append(scope["client"][0])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body"})

    head = b"GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 10.1.2.3\r\n\r\n"
    with serve(app) as port:
        assert read_status(send(port, head)) == 200

    assert clients == ["127.0.0.1"]


def test_a_server_that_is_stopped_ends(tiny_model, monkeypatch):
    """Half-sent requests do not keep it: their clients get 503 or nothing."""
    monkeypatch.setattr(connections, "_SHUTDOWN_SECONDS", 1)
    with serve(build_app(Follower.of_folder(tiny_model), ServeSettings())) as port:
        header = send(port, HEAD)
        body = send(port, HEAD + b"Content-Length: 90\r\n\r\nhalf")
        assert read_status(send(port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")) == 200

    assert read(header) == b""
    assert read(body).split()[1] == b"503"


@pytest.mark.drill
def test_answers_are_the_same_under_load(tiny_model, tiny_data, monkeypatch, image, drill):
    """Eight clients ask good and odd things at once, beside silent ones: a good image has one answer."""
    monkeypatch.setattr(connections, "HEADER_SECONDS", 2)
    rng, count = drill.draw(), drill.choose(64, 4000)
    images = [path.read_bytes() for path in sorted((tiny_data / "disc/test").rglob("*.png"))]
    odd = [
        (image, {}, 401),
        (image, {"X-API-Key": "other"}, 401),
        (image[: len(image) // 2], {"X-API-Key": KEY}, 422),
        (b"no image", {"X-API-Key": KEY}, 422),
        (bytes(MAX_BYTES + 1), {"X-API-Key": KEY}, 413),
    ]
    good = [(content, {"X-API-Key": KEY}, 200) for content in images] * 3
    answers: dict[bytes, list] = {}

    def ask(client, content, headers, code):
        answer = client.post(
            "/predict/file", data={"category": "disc"}, files={"file": content}, headers=headers
        )
        assert answer.status_code == code
        if code == 200:
            body = answer.json()
            answers.setdefault(content, []).append((body["score"], body["verdict"]))

    settings = ServeSettings(api_key=KEY, max_bytes=MAX_BYTES)
    with serve(build_app(Follower.of_folder(tiny_model), settings)) as port:
        requests = [rng.choice(good + odd) for _ in range(count)] + good
        slow = [send(port, HEAD[: rng.randrange(len(HEAD))]) for _ in range(100)]
        with (
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client,
            ThreadPoolExecutor(8) as pool,
        ):
            list(pool.map(lambda request: ask(client, *request), requests))
        for connection in slow:
            connection.close()

    assert set(answers) == set(images)
    for found in answers.values():
        assert len(set(found)) == 1
    drill.note(
        "requests of six kinds, beside 100 slow clients, with answers compared", len(requests)
    )
