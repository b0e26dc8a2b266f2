"""Who may do what, on the list and over HTTP."""

import stat
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from onenip.errors import DataError
from onenip.registry import approval, audit
from onenip.registry.publishing import publish
from onenip.review.answers import Keeping
from onenip.serving.champions import Follower
from onenip.serving.people import NotAllowedError, People
from onenip.serving.web import ServeSettings, build_app
from tests.tiny import write_figures

PASSWORD = "a long one"


@pytest.fixture
def people(tmp_path):
    found = People(tmp_path / "people.json")
    found.add("Ada", "approver", category="disc", password=PASSWORD)
    found.add("Ada", "inspector", category="stripes")
    found.add("Bo", "inspector", password=PASSWORD)
    found.add("Vi", "viewer", password=PASSWORD)
    return found


def test_roles_are_by_category_and_each_holds_the_lower_ones(people):
    """An approver may inspect; a role of one category says nothing about another."""
    ada, bo = people.check("Ada", PASSWORD), people.check("Bo", PASSWORD)

    assert ada.may("approver", "disc")
    assert ada.may("inspector", "disc")
    assert not ada.may("approver", "stripes")
    assert bo.may("inspector", "anything")
    with pytest.raises(NotAllowedError, match="Bo is no approver of disc"):
        bo.require("approver", "disc")


def test_passwords_are_hashed_and_checked(people, tmp_path):
    """The file holds no password and is its owner's alone; a wrong one, or an unknown person, is nobody."""
    path = tmp_path / "people.json"

    assert PASSWORD not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert people.check("Ada", "another one") is None
    assert people.check("Cy", PASSWORD) is None
    with pytest.raises(DataError, match="8 to 200 characters"):
        people.add("Cy", "viewer", password="short")
    people.remove("Ada")
    assert people.check("Ada", PASSWORD) is None
    with pytest.raises(DataError, match="not on the list"):
        people.remove("Ada")


def test_who_logs_in_elsewhere_has_no_password(people):
    """A proxy or a company's login names them; no password is theirs, and none an empty one."""
    people.add("cy@example.com", "inspector", password=None)

    assert people.check("cy@example.com", "") is None
    assert people.identify("", "cy@example.com").may("inspector", "disc")


@pytest.mark.usefixtures("people")
def test_feedback_asks_for_an_inspector(tiny_model, tiny_data, tmp_path):
    """With a list, feedback bears the name of who logged in, or of whom a trusted proxy names."""
    image = (tiny_data / "disc/test/good/000.png").read_bytes()
    settings = ServeSettings(
        keeping=Keeping(str(tmp_path / "kept")),
        people=tmp_path / "people.json",
        person_header="X-Person",
        proxies=frozenset({"testclient"}),
    )
    with TestClient(build_app(Follower.of_folder(tiny_model), settings)) as client:
        form = {"files": {"file": image}, "data": {"category": "disc"}}
        answer = client.post("/predict/file?map=png", **form).json()
        said = {"id": answer["id"], "label": "good", "by": "somebody else"}
        nobody = client.post("/feedback", json=said)
        wrong = client.post("/feedback", json=said, auth=("Bo", "a wrong one"))
        viewer = client.post("/feedback", json=said, auth=("Vi", PASSWORD))
        right = client.post("/feedback", json=said, auth=("Bo", PASSWORD))
        proxied = client.post("/feedback", json=said, headers={"X-Person": "Ada"})
        other = client.post("/predict/file?map=svg", **form)
        plain = client.post("/predict/file", **form).json()

    assert answer["map"].startswith("iVBOR")
    assert "map" not in plain
    assert other.status_code == 422
    assert [one.status_code for one in (nobody, wrong, viewer, right, proxied)] == [
        *(401, 401, 403, 201, 201)
    ]
    assert (right.json()["by"], proxied.json()["by"]) == ("Bo", "Ada")


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"people": {"Ada": 5}}',
        '{"people": {"Ada": {"roles": {"*": "approver"}}}}',
        '{"people": {"Ada": {"roles": {"*": "king"}, "password": "00$00"}}}',
        '{"people": {"Ada": {"roles": {"*": "approver"}, "password": "$"}}}',
    ],
)
def test_a_damaged_list_lets_nobody_in(tiny_model, tmp_path, content):
    """It is 503 and a line in the log, never a fault, whoever asks."""
    (tmp_path / "people.json").write_text(content)
    settings = ServeSettings(people=tmp_path / "people.json")
    with TestClient(build_app(Follower.of_folder(tiny_model), settings)) as client:
        asked = {"category": "disc", "reason": "read the report"}
        answer = client.post("/approve", json=asked, auth=("Ada", ""))

    assert answer.status_code == 503
    with pytest.raises(DataError, match="not a list of people"):
        People(tmp_path / "people.json").list_all()


@pytest.mark.usefixtures("people")
def test_guesses_of_passwords_are_few_at_a_time(tiny_model, tmp_path):
    """Whoever sends many gets 503 for most of them, so that verdicts keep the processor."""
    settings = ServeSettings(people=tmp_path / "people.json")
    asked = {"category": "disc", "reason": "read the report"}
    with (
        TestClient(build_app(Follower.of_folder(tiny_model), settings)) as client,
        ThreadPoolExecutor(40) as pool,
    ):
        codes = Counter(
            pool.map(
                lambda n: client.post("/approve", json=asked, auth=("Ada", f"{n}")).status_code,
                range(40),
            )
        )
        calm = client.post("/approve", json=asked, auth=("Vi", PASSWORD)).status_code

    assert codes.keys() == {401, 503}
    assert calm == 403


@pytest.mark.usefixtures("people")
def test_a_name_that_comes_twice_is_refused(tiny_model, tmp_path):
    """A proxy that adds its header leaves the client's own before it."""
    settings = ServeSettings(
        people=tmp_path / "people.json",
        person_header="X-Person",
        proxies=frozenset({"testclient"}),
    )
    with TestClient(build_app(Follower.of_folder(tiny_model), settings)) as client:
        asked = {"category": "disc", "reason": "read the report"}
        headers = [("X-Person", "Ada"), ("X-Person", "Vi")]

        assert client.post("/approve", json=asked, headers=headers).status_code == 400


@pytest.mark.usefixtures("people")
def test_a_header_of_a_stranger_is_not_believed(tiny_model, tmp_path):
    """Only a trusted address may say who logged in."""
    settings = ServeSettings(people=tmp_path / "people.json", person_header="X-Person")
    asked = {"category": "disc", "reason": "read the report"}
    with TestClient(build_app(Follower.of_folder(tiny_model), settings)) as client:
        assert client.post("/approve", json=asked, headers={"X-Person": "Ada"}).status_code == 401


@pytest.mark.usefixtures("people")
def test_an_approver_decides_over_http(tiny_model, tmp_path, monkeypatch):
    """What the page can do, a program can: see what waits, approve, set a threshold, all under their name."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    evaluation = write_figures(tmp_path / "evaluation", tiny_model)
    publish(tiny_model, evaluation_dir=evaluation, params={}, facts={})
    settings = ServeSettings(people=tmp_path / "people.json", refresh_seconds=0)
    ask = {"category": "disc", "reason": "read the report"}
    with TestClient(build_app(Follower(), settings)) as client:
        nobody = client.post("/approve", json=ask)
        inspector = client.post("/approve", json=ask, auth=("Bo", PASSWORD))
        elsewhere = client.post(
            "/approve", json=ask | {"category": "stripes"}, auth=("Ada", PASSWORD)
        )
        done = client.post("/approve", json=ask | {"version": 1}, auth=("Ada", PASSWORD))
        again = client.post("/reject", json=ask, auth=("Ada", PASSWORD))
        moved = client.post("/threshold", json=ask | {"value": 3.5}, auth=("Ada", PASSWORD))
        status = client.get("/status").json()
        undone = client.post("/rollback", json=ask, auth=("Ada", PASSWORD))

    assert undone.json()["threshold"] is None
    assert [one.status_code for one in (nobody, inspector, elsewhere, done, again, moved)] == [
        *(401, 403, 403, 200, 409, 200)
    ]
    assert done.json()["aliases"] == ["champion"]
    disc = next(one for one in status if one["category"] == "disc")
    assert (disc["approval"], disc["approver"], disc["threshold"]) == ("approved", "Ada", 3.5)
    assert [(e.action, e.by) for e in audit.read_trail("disc")][-3:] == [
        ("approve", "Ada"),
        ("threshold", "Ada"),
        ("rollback", "Ada"),
    ]
    with pytest.raises(Exception, match="no challenger waits"):
        approval.reject("disc", by="Ada", reason="too late")
