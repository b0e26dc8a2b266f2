"""The pages of `onenip inspect` in a real browser: pictures are shown, and a decision is taken."""

import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from onenip.data.outputs import OUTPUTS
from onenip.model.file import hash_model
from onenip.registry import approval, versions
from onenip.registry.publishing import publish
from onenip.registry.tags import GateResult
from onenip.review.answers import Answers, Keeping, new_id
from onenip.review.items import Candidate
from onenip.review.queue import ReviewQueue
from onenip.serving.people import People
from tests.pages.oidc import CLIENT, SECRETS, provide
from tests.tiny import change_spec, write_figures

REFUSED = GateResult(
    verdict="reject",
    reasons=("it is slow",),
    is_provisional=False,
    judged_at=datetime(2026, 11, 25, tzinfo=UTC),
)

pytestmark = pytest.mark.timeout(480)


def find_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_page(folder, *arguments, port=None):
    port = port or find_port()
    command = [sys.executable, "-m", "onenip", "inspect", "--port", str(port), *arguments]
    process = subprocess.Popen(command, cwd=folder, env=os.environ, start_new_session=True)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/_stcore/health").is_success:
                break
        except httpx.HTTPError:
            time.sleep(0.3)
    return process, f"http://127.0.0.1:{port}"


def stop_page(process):
    import psutil

    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in family:
        one.terminate()
    psutil.wait_procs(family, timeout=20)


def keep_answer(recent, image, found):
    """Keep an answer as the server does; gives its id."""
    answer = {"id": new_id(), **found.to_dict()}
    Answers(recent).keep(answer, image.read_bytes(), found, Keeping(recent))
    return answer["id"]


def report_good(page, name):
    """Say at a served part that it was good."""
    sign_in(page, name, "a long password")
    page.get_by_role("button", name="Good").click()
    page.wait_for_selector(f"text={name} says: good", timeout=60_000)


def write_text(path):
    path.write_text("hello")
    return path


@pytest.fixture
def registry(tmp_path, monkeypatch, tiny_model):
    """A registry in which the tiny model waits for approval."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    evaluation = write_figures(tmp_path / "evaluation", tiny_model)
    publish(tiny_model, evaluation_dir=evaluation, params={}, facts={})
    return tmp_path


def sign_in(page, name, password, *, wrong=False):
    """Fill the form of a page that asks who is there."""
    page.get_by_role("button", name="Sign in").first.click()
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password", exact=True).fill(password)
    page.get_by_label("Password", exact=True).press("Enter")  # the popover may move under the mouse
    text = "Wrong name or password" if wrong else f"You are {name}"
    page.wait_for_selector(f"text={text}", timeout=60_000)


def test_a_person_looks_and_approves(registry, tiny_model, tiny_detector, tiny_data, browser):
    """A served part is reported, versions are shown together, bad uploads get a line; the form decides.

    What the gate rejected is approved by a person who signed in and says that they know better.
    """
    approval.approve("disc", by="Eve", reason="the first one")
    stricter = Path(shutil.copytree(tiny_model, registry / "stricter"))
    threshold = tiny_detector.spec.categories["disc"].image_threshold - 0.5
    change_spec(stricter, lambda s: s["categories"]["disc"].update(image_threshold=threshold))
    evaluation = write_figures(registry / "evaluation", stricter)
    publish(stricter, evaluation_dir=evaluation, params={}, facts={})
    versions.set_gate_result("disc", 2, REFUSED)
    image = sorted((tiny_data / "disc/test/spot").iterdir())[0]
    found = tiny_detector.predict([image], category="disc")[0]
    recent = str(registry / "recent")
    answer = keep_answer(recent, image, found)
    text = write_text(registry / image.name)  # a name that another dropped file has, too
    process, address = start_page(registry, "--folder", str(tiny_data), "--recent", recent)
    try:
        page, errors = browser.new_page(viewport={"width": 1280, "height": 900}), []
        page.on("console", lambda m: errors.append(m) if m.type == "error" else None)
        page.goto(f"{address}/inspect?category=disc&from=served", timeout=90_000)
        page.wait_for_selector(f"text=disc: {found.verdict}", timeout=90_000)
        report_good(page, "Ada")
        page.goto(f"{address}/inspect?category=disc&from=dropped", timeout=90_000)
        page.locator("input[type=file]").set_input_files([image, text])
        page.wait_for_selector("text=challenger: version 2", timeout=90_000)
        page.wait_for_selector(f"text=score {found.score:.2f}, threshold {found.threshold:.2f}")
        page.wait_for_selector(".viewer img >> nth=5", timeout=60_000)
        pictures = page.eval_on_selector_all(".viewer img", "all => all.map(i => i.naturalWidth)")
        page.keyboard.press("ArrowRight")
        page.wait_for_selector(
            f"text={image.name} (2) cannot be judged: not an image", timeout=60_000
        )
        page.set_viewport_size({"width": 390, "height": 844})
        width = page.evaluate("() => document.documentElement.scrollWidth")
        page.goto(f"{address}/decide?category=disc", timeout=90_000)
        sign_in(page, "Ada", "a long password")
        page.get_by_label("Reason").first.fill("looked at it")
        page.get_by_role("button", name="Approve").click()
        page.wait_for_selector("text=the gate rejected it (it is slow)", timeout=60_000)
        page.get_by_text("Approve although the gate rejected it").click()
        page.get_by_role("button", name="Approve").click()
        page.wait_for_selector("text=was approved by Ada", timeout=60_000)
    finally:
        stop_page(process)

    assert len([width for width in pictures if width > 0]) >= 6
    assert width <= 390
    # pictures of a run that a newer one overtook are gone; below a page's own address Streamlit asks once
    # for its own parts there, then at the root
    expected = ("/media/", "/inspect/_stcore/", "/decide/_stcore/")
    assert all(any(e in m.location["url"] for e in expected) for m in errors)
    said = [(one.answer, one.label, one.by) for one in Answers(recent).take_feedback()]
    assert said == [(answer, "good", "Ada")]
    champion = versions.champion("disc")
    assert (champion.number, champion.approver) == (2, "Ada")
    assert champion.digest == hash_model(stricter)


@contextmanager
def said_by_proxy(address, name):
    """A reverse proxy before an address that says, with each connection, who logged in there."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            head = b""
            while b"\r\n\r\n" not in head and (part := self.request.recv(65536)):
                head += part
            line, _, rest = head.partition(b"\r\n")
            host, port = address.removeprefix("http://").split(":")
            with socket.create_connection((host, int(port))) as behind:
                behind.sendall(line + f"\r\nX-Person: {name}\r\n".encode() + rest)
                threading.Thread(target=pump, args=(self.request, behind), daemon=True).start()
                pump(behind, self.request)

    def pump(source, target):
        with suppress(OSError):
            while part := source.recv(65536):
                target.sendall(part)
            target.shutdown(socket.SHUT_WR)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.slow
def test_whoever_may_not_decide_sees_no_form(registry, browser):
    """A stranger only looks, an inspector does not approve; a trusted proxy may say who somebody is."""
    process, address = start_page(registry, "--person-header", "X-Person")
    stranger, seen = browser.new_page(), {}
    try:
        People().add("Bo", "inspector", password=None)
        People().add("Ada", "approver", category="disc", password=None)
        for name, text in (
            ("Bo", "Bo is no approver of disc"),
            ("Ada", "You are Ada"),
            ("Eve", "not on the list of people"),
        ):
            with said_by_proxy(address, name) as proxied:
                page = browser.new_page()
                page.goto(f"{proxied}/decide?category=disc", timeout=90_000)
                page.wait_for_selector(f"text={text}", timeout=90_000)
                page.wait_for_selector("text=History", timeout=60_000)
                seen[name] = page.get_by_role("button", name="Approve").count()
                page.close()
        stranger.goto(f"{address}/decide?category=disc", timeout=90_000)
        stranger.wait_for_selector("text=Sign in as approver", timeout=90_000)
        stranger.wait_for_selector("text=History", timeout=60_000)
        seen["stranger"] = stranger.get_by_role("button", name="Approve").count()
    finally:
        stop_page(process)

    assert seen == {"Bo": 0, "Ada": 1, "Eve": 0, "stranger": 0}


@pytest.mark.slow
def test_the_first_person_at_an_unlisted_machine_becomes_approver(registry, browser):
    """Without a list the one who signs in makes it; a wrong password is told from then on."""
    process, address = start_page(registry)
    try:
        page = browser.new_page()
        page.goto(f"{address}/decide?category=disc", timeout=90_000)
        sign_in(page, "Ada", "a long password")
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_selector("text=Sign in as approver", timeout=60_000)
        sign_in(page, "Ada", "another password", wrong=True)
    finally:
        stop_page(process)

    assert [(one.name, dict(one.roles)) for one in People().list_all()] == [
        ("Ada", {"*": "approver"})
    ]


def test_a_changed_threshold_is_another_question(tiny_detector, tiny_data):
    """What the page kept of a model's answers says nothing of the same model with another threshold."""
    from onenip.pages.inspect import judge
    from onenip.pages.models import Candidate

    content = next((tiny_data / "disc/test/spot").iterdir()).read_bytes()
    score = judge(content, "disc", [Candidate("folder", tiny_detector)]).predictions[0].score
    verdicts = [
        judge(content, "disc", [Candidate("folder", changed)]).predictions[0].verdict
        for changed in (tiny_detector.with_threshold("disc", score + at) for at in (1, -1))
    ]

    assert verdicts == ["normal", "anomalous"]


WATCH = """([title, score]) => {
  window.isMixed = false;
  new MutationObserver(() => {
    const text = document.body.innerText;
    if (text.includes(title) && text.includes(score)) window.isMixed = true;
  }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


def test_an_answer_is_never_shown_to_another_question(
    tiny_model, tiny_detector, tiny_data, browser, tmp_path
):
    """When category or image change, the old verdict is gone before the new image is named."""
    first, second = (
        sorted((tiny_data / name / "test").rglob("*.png"))[0] for name in ("disc", "stripes")
    )
    scores = [
        tiny_detector.predict([path], category=name)[0].score
        for path, name in ((first, "disc"), (second, "stripes"))
    ]
    process, address = start_page(tmp_path, "--model", str(tiny_model), "--folder", str(tiny_data))
    try:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"{address}/inspect", timeout=90_000)
        page.wait_for_selector(f"text=score {scores[0]:.2f}", timeout=90_000)
        page.evaluate(WATCH, [f"{tiny_data.name}/stripes", f"score {scores[0]:.2f}"])
        page.get_by_label("Category").click()
        page.get_by_role("option", name="stripes").click()
        page.wait_for_selector(f"text=score {scores[1]:.2f}", timeout=60_000)
        is_mixed = page.evaluate("() => window.isMixed")
        old = page.get_by_text(f"score {scores[0]:.2f}").count()
    finally:
        stop_page(process)

    assert not is_mixed
    assert not old


PAGES = {
    "": "2 categories",
    "review?category=disc": "a normal part",
    "inspect?category=disc&image=disc/test/spot/000.png": "true mask",
    "decide?category=disc": "History",
    "data?category=disc": "No version of the data yet",
    "operator?category=disc": "DEFECT",
}


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_each_page_has_an_address(registry, tiny_detector, tiny_data, browser, width):
    """Every page opens by its address, on a wide and on a narrow screen, without an error."""
    image = sorted((tiny_data / "disc/test/spot").iterdir())[0]
    found = tiny_detector.predict([image], category="disc")[0]
    answer = {"id": new_id(), **found.to_dict(), "score": 99.0, "verdict": "anomalous"}
    recent = str(registry / "recent")
    Answers(recent).keep(answer, image.read_bytes(), found, Keeping(recent))
    one = Candidate("disc", "alarm", image.read_bytes(), ".png", answer=answer, score_map=found.map)
    ReviewQueue().add([one])
    next(OUTPUTS.review.glob("maps/*")).write_bytes(
        b"damaged"
    )  # the image can be looked at all the same
    approval.approve("disc", by="Eve", reason="the first one")
    process, address = start_page(registry, "--folder", str(tiny_data), "--recent", recent)
    widths, alerts = {}, {}
    try:
        for path, text in PAGES.items():
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.goto(f"{address}/{path}", timeout=90_000)
            page.wait_for_selector(f"text={text}", timeout=90_000)
            widths[path] = page.evaluate("() => document.documentElement.scrollWidth")
            alerts[path] = page.locator("[data-testid=stAlertContentError]").count()
            page.close()
    finally:
        stop_page(process)

    assert max(widths.values()) <= width
    assert not any(alerts.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("email", "text", "buttons"),
    [
        ({"email": "ada@plant.example", "email_verified": True}, "You are ada", 1),
        ({"email": "eve@plant.example", "email_verified": True}, "not on the list of people", 0),
        ({"email": "ada@plant.example", "email_verified": False}, "no verified e-mail", 0),
    ],
)
def test_the_companys_login_says_who_somebody_is(registry, browser, email, text, buttons):
    """A listed, verified address decides; one that is not listed or not verified only looks."""
    People().add("ada@plant.example", "approver", password=None)
    port = find_port()
    secrets = registry / ".streamlit/secrets.toml"
    secrets.parent.mkdir()
    with provide(email) as provider:
        secrets.write_text(SECRETS.format(port=port, client=CLIENT, provider=provider))
        process, address = start_page(registry, port=port)
        try:
            page = browser.new_page()
            page.goto(f"{address}/decide?category=disc", timeout=90_000)
            page.wait_for_selector("text=History", timeout=90_000)
            page.get_by_role("button", name="Sign in").first.click()
            page.get_by_role("button", name="Log in").click()
            page.wait_for_url(f"{address}/", timeout=90_000)
            page.goto(f"{address}/decide?category=disc", timeout=90_000)
            page.wait_for_selector(f"text={text}", timeout=90_000)
            page.wait_for_selector("text=History", timeout=60_000)
            seen = page.get_by_role("button", name="Approve").count()
        finally:
            stop_page(process)

    assert seen == buttons
