"""Registration and approval on a real MLflow store: who decides, what serves, what is remembered."""

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from onenip import Detector
from onenip.cli import app
from onenip.errors import RegistryError
from onenip.printing import plain
from onenip.registry import approval, audit, runs, versions
from onenip.registry.champions import load_champion, read_serving
from onenip.registry.publishing import publish
from onenip.registry.store import connect
from onenip.registry.tags import GateResult, registered_name
from onenip.registry.tracking import training_run
from onenip.registry.versions import find_addressed
from onenip.registry.weights import NAME, fetched_weights
from onenip.serving.files import load_model
from tests.tiny import CATEGORIES, write_figures

FACTS = {"data_version": "abc.dir", "git_commit": "0" * 40}


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty store of its own, in SQLite."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def publish_model(store, tiny_detector):
    """Publish the tiny model, each time with another provenance and so another digest."""

    def run(number=1):
        folder = store / f"model{number}"
        spec = tiny_detector.spec.model_copy(update={"provenance": {"number": number}})
        Detector(
            tiny_detector.network,
            spec=spec,
            states={c: tiny_detector.state(c) for c in CATEGORIES},
        ).save(folder)
        evaluation = write_figures(store / f"evaluation{number}", folder)
        return publish(folder, evaluation_dir=evaluation, params={"seed": number}, facts=FACTS)

    return run


def test_registration_makes_one_challenger_per_category_and_stores_weights_once(publish_model):
    """Every category gets a version that points at the same weights; doing it again adds nothing."""
    first = publish_model()
    again = publish_model()

    assert [v.category for v in first] == sorted(CATEGORIES)
    assert len({v.weights_uri for v in first}) == 1
    assert [(v.number, v.aliases) for v in again] == [(1, ("challenger",))] * 2
    assert first[0].data_version == "abc.dir"


@pytest.mark.slow
def test_equal_registrations_at_once_store_the_weights_once(store, tiny_model):
    """One run, one stored model, one version of each category, whoever comes first."""
    evaluation = write_figures(store / "evaluation", tiny_model)
    connect(create=True)

    with ThreadPoolExecutor(2) as pool:
        begun = [
            pool.submit(publish, tiny_model, evaluation_dir=evaluation, params={}, facts=FACTS)
            for _ in range(2)
        ]
        found = [one.result() for one in begun]

    assert {(v.category, v.number) for one in found for v in one} == {(c, 1) for c in CATEGORIES}
    assert len({v.weights_uri for one in found for v in one}) == 1
    assert len({v.run_id for one in found for v in one}) == 1
    experiment = connect().get_experiment_by_name(runs.EXPERIMENT).experiment_id
    assert [m.name for m in connect().search_logged_models([experiment])].count(NAME) == 1


def find_stored(weights_uri):
    """Folder in which a local store keeps a model."""
    stored = connect().get_logged_model(weights_uri.rpartition("/")[2])
    return Path(urlsplit(stored.artifact_location).path)


def test_copies_of_stored_models_do_not_pile_up(publish_model, tmp_path, monkeypatch):
    """A copy lasts as long as it is read, also where what is read is broken."""
    (version, _) = publish_model()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    approval.approve("disc", by="Ada", reason="looked at it")

    with fetched_weights(version.weights_uri) as folder:
        assert (folder / "model.safetensors").is_file()
        assert folder.is_relative_to(scratch)
    load_champion("disc")
    (find_stored(version.weights_uri) / "detector.json").write_text("{")
    with pytest.raises(RegistryError, match="cannot be read"):
        load_champion("disc")

    assert list(scratch.iterdir()) == []


def test_what_was_approved_is_what_is_loaded(publish_model):
    """After approval the champion loads, and a changed byte in its weights is refused."""
    (version, _) = publish_model()
    with pytest.raises(RegistryError, match="no champion"):
        load_champion("disc")
    approval.approve("disc", by="Ada", reason="looked at it")

    detector, champion = load_champion("disc")
    assert detector.digest == version.digest
    assert (champion.approver, champion.approval) == ("Ada", "approved")

    weights = find_stored(champion.weights_uri) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(RegistryError, match="changed"):
        load_champion("disc")


def test_a_category_may_have_any_name_that_a_folder_may(store, tiny_detector):
    """Letters of any language, brackets, quotes, dots and colons: registered, approved, loaded, addressed."""
    names = ["Flasche groß (1)", "o'ring 1.5\": 3%"]
    kept = [tiny_detector.state(old) for old in CATEGORIES]
    known = [tiny_detector.spec.categories[old] for old in CATEGORIES]
    Detector(
        tiny_detector.network,
        spec=tiny_detector.spec.model_copy(
            update={"categories": dict(zip(names, known, strict=True))}
        ),
        states=dict(zip(names, kept, strict=True)),
    ).save(store / "model")
    write_figures(store / "figures", store / "model", categories=names)

    published = publish(store / "model", evaluation_dir=store / "figures", params={}, facts=FACTS)
    run = connect().get_run(published[0].run_id)
    assert "test/Flasche groß _1_-" in " ".join(run.data.metrics)
    for name, version in zip(names, published, strict=True):
        approval.approve(name, by="Ada", reason="looked at it")
        assert load_champion(name)[1].number == 1
        assert find_addressed(version.uri).category == name
        described = connect().get_registered_model(registered_name(name)).description
        assert f"serves {plain(name)}." in described  # Markdown: no picture from elsewhere
        assert load_model(f"models:/{registered_name(name)}@champion", None).digest
    assert versions.list_categories() == names


def test_a_category_is_decided_on_its_own(publish_model):
    """Approving one category leaves the other's challenger waiting."""
    publish_model()
    approval.approve("disc", by="Ada", reason="good")

    assert versions.champion("disc").number == 1
    assert versions.champion("stripes") is None
    assert versions.challenger("stripes").number == 1


def test_rollback_brings_the_last_champion_back(publish_model):
    """Of two approved versions the first serves again, and the trail tells the story."""
    publish_model(1)
    approval.approve("disc", by="Ada", reason="first")
    publish_model(2)
    approval.approve("disc", by="Ada", reason="better")

    approval.rollback("disc", by="Grace", reason="false alarms")

    trail = audit.read_trail("disc")
    assert versions.champion("disc").number == 1
    assert [e.action for e in trail] == ["register", "approve", "register", "approve", "rollback"]
    assert trail[-1].by == "Grace"
    assert audit.find_breaks(trail) == []


def test_rejection_keeps_the_champion(publish_model):
    """A rejected challenger waits no more."""
    publish_model(1)
    approval.approve("disc", by="Ada", reason="first")
    publish_model(2)
    approval.reject("disc", by="Ada", reason="worse")

    assert versions.champion("disc").number == 1
    assert versions.challenger("disc") is None


def test_of_two_approvals_one_wins_and_the_other_is_told(publish_model):
    """Two people at once: one approval, one error that names the winner."""
    publish_model()

    def approve(name):
        try:
            return approval.approve("disc", by=name, reason="good").approver
        except RegistryError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(approve, ["Ada", "Grace"]))

    winner = versions.champion("disc").approver
    assert sum(outcome == winner for outcome in outcomes) == 1
    assert any(winner in outcome and outcome != winner for outcome in outcomes)


def test_a_version_that_the_gate_rejected_needs_an_override(publish_model):
    """The gate's word holds unless a person overrides it."""
    publish_model()
    versions.set_gate_result(
        "disc", 1, GateResult(verdict="reject", reasons=["image_auroc low"], judged_at=audit.now())
    )

    with pytest.raises(RegistryError, match="gate"):
        approval.approve("disc", by="Ada", reason="hurry")
    approval.approve("disc", by="Ada", reason="the reference images are wrong", override=True)

    assert versions.champion("disc").number == 1


def test_an_alias_set_by_hand_is_noticed(publish_model):
    """Somebody moves the champion alias in MLflow: it is recorded, and then served."""
    publish_model()
    versions.set_alias("disc", "champion", 1)

    entries = approval.reconcile()

    assert entries
    assert load_champion("disc")[1].number == 1


def test_names_and_reasons_are_required(publish_model):
    """An approval without a reason is refused, and nothing changes."""
    publish_model()

    with pytest.raises(RegistryError):
        approval.approve("disc", by="Ada", reason=" ")

    assert versions.champion("disc") is None


def test_a_killed_training_goes_on_in_its_run(store):
    """The same training, started again, logs to the same run, each step once."""
    from onenip.registry.store import connect

    manifest = store / "manifest.csv"
    manifest.write_text("x")
    tracked = training_run({"seed": 0}, manifest=manifest)
    run = tracked.__enter__()
    run.log(1, {"loss": 2.0})
    run.close(status="KILLED")
    with training_run({"seed": 0}, manifest=manifest) as again:
        again.log(1, {"loss": 2.0})
        again.log(2, {"loss": 1.0})

    history = connect().get_metric_history(again.run_id, "loss")
    assert again.run_id == run.run_id
    assert [point.step for point in history] == [1, 2]


def test_no_fault_of_mlflow_or_the_disk_ends_a_training(store, monkeypatch):
    """Whatever is raised while values are sent: they wait, and the training that finished is finished."""

    def fail(*_arguments, **_named):
        raise ZeroDivisionError("a fault that nobody thought of")

    for module, name in ((runs, "create_run"), (runs, "write_record")):
        with monkeypatch.context() as patch:
            error = fail if name == "create_run" else _refuse
            patch.setattr(module, name, error)
            with training_run({"seed": name}, manifest=store / "none.csv") as run:
                run.log(1, {"loss": 1.0})
                run.name_model("a" * 64)

    unsent = store / "artifacts/tracking/unsent.jsonl"
    unsent.write_text("{damaged\n")
    with training_run({"seed": 3}, manifest=store / "none.csv") as run:
        run.log(1, {"loss": 1.0})
    assert connect().get_run(run.run_id).info.status == "FINISHED"


def _refuse(*_arguments, **_named):
    raise OSError(28, "No space left on device")


def test_reading_makes_no_database(store):
    """`status`, `audit` and `predict` say that there is no registry, and leave none behind."""
    said = {
        words: CliRunner().invoke(app, list(words))
        for words in (("status",), ("audit",), ("predict", "x.png", "-c", "disc"))
    }

    assert "Nothing is registered yet" in said["status",].stdout
    assert said["audit",].exit_code == 0
    assert isinstance(said["predict", "x.png", "-c", "disc"].exception, RegistryError)
    assert not list(store.glob("*mlflow.db*"))
    with pytest.raises(RegistryError, match=r"mlflow\.db: there is no registry"):
        read_serving()


def test_a_mistyped_category_gets_the_closest_name(publish_model):
    """Whatever asks for it: never the advice to approve what does not exist."""
    publish_model()
    wanted = "unknown category 'Disk'; registered categories: disc, stripes; did you mean 'disc'?"

    for ask in (
        lambda: approval.approve("Disk", by="Ada", reason="good"),
        lambda: load_champion("Disk"),
        lambda: load_model("", "Disk"),
        lambda: find_addressed("models:/onenip-Disk@champion"),
        lambda: find_addressed("models:/onenip-Disk/1"),
    ):
        with pytest.raises(RegistryError) as caught:
            ask()
        assert str(caught.value) == wanted
    said = CliRunner().invoke(app, ["audit", "Disk"])
    assert str(said.exception) == wanted
    with pytest.raises(RegistryError, match="disc: there is no version 7; there are: 1"):
        find_addressed("models:/onenip-disc/7")


_OPEN = """
import resource, sys
if sys.argv[1:]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)  # as a full disk
from onenip.errors import OneNIPError
from onenip.registry import store
from onenip.registry.versions import list_categories
try:
    store.connect(create=True)
    print(list_categories())
except OneNIPError as error:
    sys.exit(f"onenip: {error}")
"""


def test_a_local_store_is_made_whole_or_not_at_all(store):
    """A disk that is full at the first contact leaves nothing half-made behind: the next attempt works."""
    full = subprocess.run(
        [sys.executable, "-c", _OPEN, "200000"], capture_output=True, text=True, check=False
    )
    assert full.returncode == 1
    assert full.stderr.splitlines()[-1].startswith("onenip: cannot open sqlite:///")
    assert not list(store.glob("*mlflow.db*"))

    roomy = subprocess.run(
        [sys.executable, "-c", _OPEN], capture_output=True, text=True, check=False
    )

    assert roomy.stdout.strip() == "[]", roomy.stderr
