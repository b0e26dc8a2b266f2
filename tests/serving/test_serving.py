"""`onenip serve`: the same answers as everywhere, and never a wrong one."""

import asyncio
import base64
import gc
import io
import socket
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from onenip import Detector
from onenip.registry import approval, store
from onenip.review.answers import Answers, Keeping
from onenip.serving.champions import Follower, Roster, Serving
from onenip.serving.queue import JudgingQueue
from onenip.serving.web import ServeSettings, build_app
from tests.tiny import write_figures


@contextmanager
def answer_everything(content):
    """Address of an HTTP server that answers every request with the same bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815  # the name that http.server calls

        def log_message(self, *_):
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def image_file(tiny_data):
    return next((tiny_data / "disc/test/spot").iterdir())


@pytest.fixture
def client(tiny_model):
    app = build_app(Follower.of_folder(tiny_model), ServeSettings(max_bytes=350_000))
    with TestClient(app) as found:
        yield found


def encode(content):
    return base64.b64encode(content).decode()


def test_it_answers_as_the_detector_does(client, tiny_detector, image_file):
    """Base64 and upload give the score of `Detector.predict`, to the last bit."""
    expected = tiny_detector.predict([image_file], category="disc")[0]
    body = {"image": encode(image_file.read_bytes()), "category": "disc"}

    sent = client.post("/predict", json=body).json()
    uploaded = client.post(
        "/predict/file", files={"file": image_file.read_bytes()}, data={"category": "disc"}
    ).json()

    assert sent["score"] == uploaded["score"] == expected.score
    assert sent["verdict"] == ("anomalous" if expected.is_anomalous else "normal")
    assert sent["digest"] == tiny_detector.digest


def test_the_category_can_be_told(client, image_file):
    """Without a category the answer says which it looks like."""
    answer = client.post("/predict", json={"image": encode(image_file.read_bytes())}).json()

    assert (answer["category"], answer["category_inferred"]) == ("disc", True)


def make_large():
    stream = io.BytesIO()
    Image.fromarray(np.zeros((16_000, 16_000), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "category", "code"),
    [
        (b"plain text", "disc", 422),
        (b"", "disc", 422),
        (b"\x89PNG\r\n\x1a\n1234", "disc", 422),
        (b"x" * 400_000, "disc", 413),
        (None, "no-such", 404),
    ],
    ids=["text", "empty", "truncated", "too-many-bytes", "unknown-category"],
)
def test_bad_requests_are_refused_by_code(client, image_file, content, category, code):
    """Each kind of bad request has its HTTP status and a reason; the server goes on."""
    body = image_file.read_bytes() if content is None else content
    answer = client.post("/predict", json={"image": encode(body), "category": category})

    assert answer.status_code == code
    assert answer.json()["detail"]
    assert client.get("/health").status_code == 200


def test_a_huge_image_is_refused_before_it_is_decoded(client):
    """256 megapixels in a small file get 413."""
    body = {"image": encode(make_large()), "category": "disc"}

    assert client.post("/predict", json=body).status_code == 413


def test_a_key_is_asked_for(tiny_model, image_file):
    """With a key set, a request without it gets 401."""
    app = build_app(Follower.of_folder(tiny_model), ServeSettings(api_key="secret"))
    body = {"image": encode(image_file.read_bytes()), "category": "disc"}
    with TestClient(app) as client:
        without = client.post("/predict", json=body).status_code
        wrong = client.post("/predict", json=body, headers={"X-API-Key": "guess"}).status_code
        right = client.post("/predict", json=body, headers={"X-API-Key": "secret"}).status_code

    assert (without, wrong, right) == (401, 401, 200)


def test_an_image_of_a_category_that_nothing_serves_is_refused(
    tiny_detector, image_file, tiny_data
):
    """Of two categories that a model knows one was approved: an image of the other is not judged as it."""
    champions = Follower()
    champions.roster = Roster({"stripes": Serving("stripes", tiny_detector, 3)})
    stripes = next((tiny_data / "stripes/test/good").iterdir())
    with TestClient(build_app(champions, ServeSettings(refresh_seconds=0))) as client:
        told = client.post("/predict", json={"image": encode(stripes.read_bytes())}).json()
        refused = client.post("/predict", json={"image": encode(image_file.read_bytes())})

    assert (told["category"], told["version"]) == ("stripes", 3)
    assert refused.status_code == 404
    assert "looks like disc, which has no approved model" in refused.json()["detail"]


def lose_memory(detector):
    detector.folded.to("meta")  # as a device does


def end_iteration(detector):
    def end(*_):
        raise StopIteration

    for part in detector.folded.modules():
        part.register_forward_pre_hook(end)


@pytest.mark.parametrize("damage", [lose_memory, end_iteration])
def test_a_model_that_fails_fails_its_own_requests(tiny_model, tiny_detector, image_file, damage):
    """An error that nobody foresaw is a 500 of its request, and the next one is answered."""
    broken = Detector.load(tiny_model)
    damage(broken)
    champions = Follower()
    champions.roster = Roster(
        {"disc": Serving("disc", broken, 1), "stripes": Serving("stripes", tiny_detector, 1)}
    )
    app = build_app(champions, ServeSettings(refresh_seconds=0))
    body = {"image": encode(image_file.read_bytes())}
    with TestClient(app, raise_server_exceptions=False) as client:
        codes = [
            client.post("/predict", json=body | {"category": name}).status_code
            for name in ("disc", "stripes", "disc", "stripes")
        ]
        figures = client.get("/metrics").text

    assert codes == [500, 200, 500, 200]
    assert 'onenip_refused_total{code="500"} 2.0' in figures


def test_metrics_and_description(client, image_file):
    """Prometheus sees verdicts, and OpenAPI describes the interface."""
    client.post("/predict", json={"image": encode(image_file.read_bytes()), "category": "disc"})

    assert 'onenip_verdicts_total{category="disc"' in client.get("/metrics").text
    described = client.get("/openapi.json").json()
    answer = described["paths"]["/predict"]["post"]["responses"]["200"]["content"]
    assert answer["application/json"]["schema"]["$ref"].endswith("/ImageAnswer")
    assert [row["category"] for row in client.get("/categories").json()] == ["disc", "stripes"]


def test_a_folder_follows_no_registry(tiny_model, monkeypatch):
    """What was given as a folder goes on serving, whatever a registry says."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    champions = Follower.of_folder(tiny_model)

    champions.refresh()

    assert champions.is_fresh
    assert list(champions.roster.serving) == ["disc", "stripes"]


def test_the_description_needs_no_network(client):
    """The page at /docs takes script and style from the server itself."""
    page = client.get("/docs").text

    assert "http://" not in page
    assert "https://" not in page
    script = page.split('<script src="')[1].split('"')[0]
    assert client.get(script).status_code == 200


def test_answers_are_kept_and_take_feedback(tiny_model, tiny_detector, image_file, tmp_path):
    """An answer has an id; under it lie image and map, and what people say about the part."""
    settings = ServeSettings(keeping=Keeping(str(tmp_path)))
    body = {"image": encode(image_file.read_bytes()), "category": "disc"}
    other = io.BytesIO()
    Image.new("L", (9, 9), 255).save(other, "PNG")
    with TestClient(build_app(Follower.of_folder(tiny_model), settings)) as client:
        answer = client.post("/predict", json=body).json()
        said = {"id": answer["id"], "label": "defect", "kind": "spot", "by": "Line 3"}
        taken = client.post("/feedback", json={**said, "boxes": [[1, 2, 3, 4]], "note": "small"})
        unknown = client.post("/feedback", json={**said, "id": "0" * 20 + "-00000000"})
        foreign = {
            client.post("/feedback", json={**said, "id": name}).status_code
            for name in ("../../etc/passwd", "0" * 20 + "-\0", "0" * 20 + "-" + "a" * 230, "1")
        }
        wrong = [
            client.post("/feedback", json={**said, **change}).status_code
            for change in (
                {"label": "great"},
                {"by": ""},
                {"mask": "x"},
                {"boxes": [[1]]},
                {"boxes": [[900, 1, 5, 5]]},
                {"boxes": [[0, 0, 10**30, 1]]},
                {"mask": encode(other.getvalue())},
                {"note": "\x1b[2J"},
                {"x": 1},
            )
        ]

    answers = Answers(tmp_path)
    (kept,) = answers.list_latest(category="disc")
    assert kept.facts == answer
    assert answers.list_latest(category="stripes") == []
    assert answers.read_image(kept.id) == image_file.read_bytes()
    score_map, _ = answers.read_map(kept.id)
    expected = tiny_detector.predict([image_file], category="disc")[0].input_map
    assert np.allclose(score_map, expected, rtol=1e-2, atol=1e-2)
    assert (taken.status_code, taken.json()["by"]) == (201, "Line 3")
    assert [(f.answer, f.label, f.note) for f in answers.take_feedback()] == [
        (kept.id, "defect", "small")
    ]
    assert list(answers.take_feedback()) == []
    assert (unknown.status_code, foreign) == (404, {404})
    assert wrong == [422] * 9


def test_a_server_that_keeps_nothing_takes_no_feedback(client):
    """It says how to start it so that it does."""
    said = client.post("/feedback", json={"id": "1", "label": "good", "by": "Ada"})

    assert (said.status_code, "--recent" in said.json()["detail"]) == (404, True)


def test_a_disk_that_refuses_stops_no_answer(tiny_model, image_file, tmp_path):
    """Where answers cannot be kept, images are judged all the same."""
    (tmp_path / "file").touch()
    settings = ServeSettings(keeping=Keeping(str(tmp_path / "file" / "recent")))
    body = {"image": encode(image_file.read_bytes()), "category": "disc"}
    with TestClient(build_app(Follower.of_folder(tiny_model), settings)) as client:
        codes = [client.post("/predict", json=body).status_code for _ in range(2)]

    assert codes == [200, 200]


def test_a_store_that_hangs_stops_no_answer(tiny_model, image_file, monkeypatch, caplog):
    """Images are judged while an S3 server takes connections and says nothing; that is logged in time."""
    body = {"image": encode(image_file.read_bytes()), "category": "disc"}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.setenv(name, "none")
        settings = ServeSettings(keeping=Keeping("s3://bucket/served"))
        with TestClient(build_app(Follower.of_folder(tiny_model), settings)) as client:
            answer = client.post("/predict", json=body)
            is_known = "answers are not kept" in caplog.text
            silent.close()  # refuses from now on
            while "answers are not kept" not in caplog.text:
                time.sleep(0.05)
            again = client.post("/predict", json=body)

    assert (answer.status_code, again.status_code, is_known) == (200, 200, False)


def test_without_a_champion_nothing_is_answered(tmp_path, monkeypatch, image_file):
    """An empty registry: not ready, and 503 for a request."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    champions = Follower()
    champions.refresh()
    with TestClient(build_app(champions, ServeSettings(refresh_seconds=0))) as client:
        body = {"image": encode(image_file.read_bytes()), "category": "disc"}

        assert client.get("/ready").status_code == 503
        assert client.post("/predict", json=body).status_code == 503


def test_it_follows_the_champion_and_outlives_the_registry(tmp_path, monkeypatch, tiny_model):
    """An approval is served after the next look; whatever a registry answers, the last champions go on.

    A model that is deleted is no longer served.
    """
    from onenip.registry.publishing import publish

    database = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    evaluation = write_figures(tmp_path / "evaluation", tiny_model)
    publish(tiny_model, evaluation_dir=evaluation, params={}, facts={})
    champions = Follower()
    champions.refresh()
    assert champions.roster.serving == {}

    approval.approve("disc", by="Ada", reason="good")
    champions.refresh()
    assert champions.roster.serving["disc"].version == 1
    assert champions.is_fresh
    patient = Follower(patience_seconds=0)
    patient.refresh()
    assert "no answer of the registry" in patient.problem  # as of one that hangs

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answer_everything(b"[]") as foreign:
        for address in ("http://127.0.0.1:9", foreign):  # nobody there; somebody else there
            monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
            champions.refresh()
            assert champions.roster.serving["disc"].version == 1
            assert "the last champions go on" in champions.problem

    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    champions.refresh()
    assert champions.is_fresh
    store.connect().delete_registered_model("onenip-disc")
    champions.refresh()
    assert champions.roster.serving == {}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_two_hundred_clients_at_once(tiny_model, image_file):
    """A real server under 200 clients answers or says 503, and never gives a wrong score."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "onenip", "serve", "--model", str(tiny_model)]
    process = subprocess.Popen([*command, "--port", str(port), "--max-waiting", "32"])
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{address}/ready").is_success:
                    break
            except httpx.HTTPError:
                time.sleep(0.3)
        body = {"image": encode(image_file.read_bytes()), "category": "disc"}
        start = threading.Barrier(200)

        def ask(_):
            start.wait()
            return httpx.post(f"{address}/predict", json=body, timeout=90)

        with ThreadPoolExecutor(200) as pool:
            answers = list(pool.map(ask, range(200)))
        codes = {answer.status_code for answer in answers}
        scores = {answer.json()["score"] for answer in answers if answer.status_code == 200}
    finally:
        process.terminate()
        process.wait(30)

    assert codes <= {200, 503}
    assert 200 in codes
    assert len(scores) == 1


def test_the_queue_keeps_nothing_of_an_answer(tiny_model, image_file):
    """A map is as large as its image: the next one finds its memory free."""
    model = Follower.of_folder(tiny_model).roster.model

    async def judge_one():
        queue = JudgingQueue(max_waiting=1, batch_size=1)
        queue.start()
        found = weakref.ref(await queue.judge(model, image_file.read_bytes(), "disc"))
        await asyncio.sleep(0.01)
        gc.collect()
        kept = found()
        await queue.stop()
        return kept

    assert asyncio.run(judge_one()) is None


def test_a_dark_image_of_a_batch_fails_alone(tiny_model, image_file):
    """What nothing can be seen on is refused, and those judged with it are not."""
    model, stream = Follower.of_folder(tiny_model).roster.model, io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "PNG")
    contents = [image_file.read_bytes(), stream.getvalue(), image_file.read_bytes()]

    async def judge_all():
        queue = JudgingQueue(max_waiting=3, batch_size=3)
        asked = [asyncio.ensure_future(queue.judge(model, one, "disc")) for one in contents]
        await asyncio.sleep(0.01)
        queue.start()
        found = await asyncio.gather(*asked, return_exceptions=True)
        await queue.stop()
        return found

    first, dark, last = asyncio.run(judge_all())
    assert first.score == last.score
    assert "nothing can be seen" in str(dark)


def test_batches_answer_each_request_by_itself(tiny_model, tiny_detector, tiny_data):
    """Requests of two categories, and one of none that is known, are judged in batches and not mixed up."""
    paths = sorted(tiny_data.glob("*/test/*/*.png"))
    expected = {
        path: tiny_detector.predict([path], category=path.parts[-4])[0].score for path in paths
    }
    app = build_app(Follower.of_folder(tiny_model), ServeSettings(batch_size=4))
    with TestClient(app) as client, ThreadPoolExecutor(len(paths) + 1) as pool:

        def ask(path, category):
            files = {"file": path.read_bytes()}
            return client.post("/predict/file", files=files, data={"category": category})

        refused = pool.submit(ask, paths[0], "no-such")
        answers = list(pool.map(lambda path: ask(path, path.parts[-4]), paths))

    assert refused.result().status_code == 404
    for path, answer in zip(paths, answers, strict=True):
        assert answer.json()["score"] == pytest.approx(expected[path], abs=1e-4)
