"""A kill at every single write to the registry: repeating the command ends as without the kill."""

from __future__ import annotations

import json
import shutil
import threading

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from onenip import Detector
from onenip.cli import app
from onenip.data import dvc
from onenip.errors import DataError, RegistryError
from onenip.params import Params
from onenip.printing import show
from onenip.registry import approval, audit, decisions, lock, store, versions
from onenip.registry.champions import load_champion
from onenip.registry.publishing import publish
from onenip.registry.tags import registered_name
from onenip.serving.champions import Follower
from onenip.stages import register as stage
from tests.tiny import write_figures

WRITES = (
    "create_registered_model",
    "create_model_version",
    "set_model_version_tag",
    "delete_model_version_tag",
    "set_registered_model_tag",
    "delete_registered_model_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "create_run",
    "set_terminated",
)
NOTED = ("approval", "approver", "reason", "approved_digest", "thresholds")


class KilledError(BaseException):
    """What the process would not live to see."""


class Killer:
    """Counts writes, and lets none through from the wanted one on."""

    def __init__(self, patch):
        self.left, self.count = None, 0
        for name in WRITES:
            patch.setattr(MlflowClient, name, self._wrap(getattr(MlflowClient, name)))

    def _wrap(self, call):
        def write(*arguments, **named):
            if threading.current_thread() is not threading.main_thread():
                return call(
                    *arguments, **named
                )  # a lock that is renewed, where the machine is slow
            self.count += 1
            if self.left is not None:
                if self.left == 0:
                    raise KilledError
                self.left -= 1
            return call(*arguments, **named)

        return write


@pytest.fixture(scope="module")
def models(tiny_detector, tmp_path_factory):
    """Two models of other digests, of one category, and an evaluation of each."""
    folder = tmp_path_factory.mktemp("models")
    state, spec = tiny_detector.state("disc"), tiny_detector.spec
    for number in (1, 2, 3):
        detector = Detector(
            tiny_detector.network,
            spec=spec.model_copy(
                update={
                    "categories": {"disc": spec.categories["disc"]},
                    "provenance": {"number": number},
                }
            ),
            states={"disc": state},
        )
        detector.save(folder / f"model{number}")
        write_figures(folder / f"scored{number}", folder / f"model{number}")
    return folder


@pytest.fixture(scope="module")
def started(models, tmp_path_factory):
    """A store in which version 1 was approved, 2 approved after it, and 3 waits; never written to."""
    folder = tmp_path_factory.mktemp("started")
    with pytest.MonkeyPatch.context() as patch:
        use(folder, patch)
        for number in (1, 2, 3):
            register(models, number)
            if number < 3:
                approval.approve("disc", by="Ada", reason=f"good {number}")
    return folder


def use(folder, patch):
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    patch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    patch.chdir(folder)


def register(models, number):
    options = {"evaluation_dir": models / f"scored{number}", "params": {}, "facts": {}}
    return publish(models / f"model{number}", **options)


def describe():
    """What the registry holds, but for moments and identifiers."""
    noted = []
    for version in versions.list_versions("disc"):
        held = {name: getattr(version, name) for name in NOTED[:4]}
        noted.append((version.number, version.aliases, version.threshold, held))
    trail = audit.read_trail("disc")
    assert audit.find_breaks(trail, audit.read_heads("disc")) == []
    assert decisions.find_intents("disc") == []
    return noted, [(e.action, e.version, e.by, e.reason, e.champion) for e in trail]


@pytest.mark.drill
@pytest.mark.parametrize(
    "action",
    [
        pytest.param("approve", marks=pytest.mark.slow),
        "reject",
        pytest.param("rollback", marks=pytest.mark.slow),
        "threshold",
    ],
)
def test_a_decision_killed_anywhere_ends_as_without_a_kill(
    started, tmp_path, monkeypatch, drill, action
):
    """Whether the same command is repeated or another comes first: one decision, one entry, no rest."""

    def decide():
        who = {"by": "Grace", "reason": "seen"}
        if action == "threshold":
            return approval.set_threshold("disc", value=5.5, **who)
        return getattr(approval, action)("disc", **who)

    killer = Killer(monkeypatch)

    def begin(name):
        shutil.copytree(started, tmp_path / name, ignore=shutil.ignore_patterns("mlartifacts"))
        use(tmp_path / name, monkeypatch)
        killer.left, killer.count = None, 0

    begin("clean")
    decide()
    wanted, writes = describe(), killer.count
    assert writes > 5
    for at in range(writes):
        begin(f"{at}")
        killer.left = at
        with pytest.raises(KilledError):
            decide()
        killer.left = None
        decide()

        assert describe() == wanted, f"killed before write {at} of {writes}"
        assert not locks()
    drill.note("kills of a decision, before each write to the registry", writes)


def test_another_command_completes_a_killed_decision(started, tmp_path, monkeypatch):
    """`status` finds what was begun, completes it under the name that it was begun in, and says so."""
    killer = Killer(monkeypatch)
    shutil.copytree(started, tmp_path / "a", ignore=shutil.ignore_patterns("mlartifacts"))
    use(tmp_path / "a", monkeypatch)
    killer.left = 4
    with pytest.raises(KilledError):
        approval.rollback("disc", by="Grace", reason="false alarms")
    killer.left = None

    (entry,) = approval.reconcile()

    assert (entry.action, entry.by, entry.champion) == ("rollback", "Grace", 1)
    assert approval.reconcile() == []
    assert versions.find_version("disc", 2).approval == "rejected"


@pytest.mark.slow
@pytest.mark.drill
def test_a_registration_killed_anywhere_ends_as_without_a_kill(
    models, tmp_path, monkeypatch, drill
):
    """A version, a challenger and an entry, each once; whatever the first attempt left behind."""
    killer = Killer(monkeypatch)
    for at in (None, *range(30)):
        folder = tmp_path / str(at)
        folder.mkdir()
        if at is not None:
            shutil.copy(tmp_path / "empty.db", folder / "mlflow.db")
        use(folder, monkeypatch)
        killer.left, killer.count = None, 0
        if at is None:
            store.connect(create=True)
            shutil.copy(folder / "mlflow.db", tmp_path / "empty.db")
            register(models, 1)
            wanted, writes = describe(), killer.count
            continue
        if at == writes:
            break
        killer.left = at
        with pytest.raises(KilledError):
            register(models, 1)
        killer.left = None
        register(models, 1)

        assert describe() == wanted, f"killed before write {at} of {writes}"
    drill.note("kills of a registration, before each write to the registry", writes)


def begin(started, folder, patch):
    """A copy of the store, to be written to."""
    shutil.copytree(started, folder, ignore=shutil.ignore_patterns("mlartifacts"))
    use(folder, patch)
    return store.connect()


def test_a_trail_that_lost_its_end_or_forked_is_noticed(started, tmp_path, monkeypatch):
    """A last entry that was removed or sealed anew, and two entries after the same one."""
    client = begin(started, tmp_path / "a", monkeypatch)
    heads = audit.read_heads("disc")
    trail = audit.read_trail("disc")
    assert audit.find_breaks(trail, heads) == []

    changed = trail[-1].model_copy(update={"by": "Mallory"})
    sealed = changed.model_copy(update={"seal": changed.hash})
    forked = sealed.model_copy(update={"before": trail[-2].before})
    forked = forked.model_copy(update={"seal": forked.hash})

    for bad in (trail[:-1], [*trail[:-1], sealed], []):
        assert audit.find_breaks(bad, heads) == ["disc: the last entry is missing or was altered"]
    assert any("not the only one" in said for said in audit.find_breaks([*trail, forked], heads))
    experiment = client.get_experiment_by_name(audit.EXPERIMENT)
    last = client.search_runs([experiment.experiment_id], max_results=1)[0]
    client.delete_run(last.info.run_id)
    said = CliRunner().invoke(app, ["audit", "disc"])
    assert "the last entry is missing" in str(said.exception)


def test_a_holder_elsewhere_keeps_the_lock_while_it_renews_it(started, tmp_path, monkeypatch):
    """Whoever waits robs nobody who is at work, and needs no clock to find out who is not."""
    client = begin(started, tmp_path / "a", monkeypatch)
    name = registered_name("disc")
    stopped = threading.Event()

    def renew():
        beat = 0
        while not stopped.wait(0.2):
            beat += 1
            client.set_registered_model_tag(name, "onenip.turn.other", f"{beat} 1 0 elsewhere")

    holder = threading.Thread(target=renew)
    holder.start()
    while not locks():
        stopped.wait(0.05)
    with (
        pytest.raises(RegistryError, match="somebody else"),
        lock.hold_lock("disc", timeout_seconds=2),
    ):
        pass
    stopped.set()
    holder.join()
    monkeypatch.setattr(lock, "_STALE_SECONDS", 0.5)

    with lock.hold_lock("disc", timeout_seconds=60) as held:
        held.check()
        assert len(locks()) == 1
        client.delete_registered_model_tag(name, locks()[0])
        with pytest.raises(RegistryError, match="another took over"):
            held.check()


def test_a_lock_outlives_a_renewal_that_fails(started, tmp_path, monkeypatch):
    """Whatever a registry does to one renewal, the next one comes."""
    begin(started, tmp_path / "a", monkeypatch)
    real, failed, renewed = MlflowClient.set_registered_model_tag, [], threading.Event()

    def renew(*arguments):
        if not failed:
            failed.append(arguments)
            raise ZeroDivisionError("a fault that nobody thought of")
        real(*arguments)
        renewed.set()

    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.05)
    with lock.hold_lock("disc") as held:
        monkeypatch.setattr(MlflowClient, "set_registered_model_tag", renew)
        assert renewed.wait(60)
        held.check()

    assert failed
    assert not locks()


def test_a_threshold_is_followed_and_rolled_back(started, tmp_path, monkeypatch):
    """It has one home, counts wherever the version is loaded, and is undone before the champion is."""
    shutil.copytree(started, tmp_path / "a")
    use(tmp_path / "a", monkeypatch)
    own = load_champion("disc")[0].spec.categories["disc"].image_threshold
    follower = Follower()
    follower.refresh()

    def served():
        follower.refresh()
        return follower.roster.serving["disc"].detector.spec.categories["disc"].image_threshold

    assert served() == own
    approval.set_threshold("disc", value=own + 1, by="Ada", reason="fewer false alarms")
    assert served() == own + 1
    assert load_champion("disc")[0].digest == versions.champion("disc").digest
    assert approval.rollback("disc", by="Ada", reason="missed one").number == 2
    assert served() == own
    assert approval.rollback("disc", by="Ada", reason="worse").number == 1
    entry = audit.read_trail("disc")[-3]
    assert (entry.action, entry.version) == ("threshold", 2)
    assert entry.reason == f"threshold {own + 1!r}, before its own: fewer false alarms"
    for bad in (float("nan"), 0.0, -1.0):
        with pytest.raises(RegistryError, match="positive number"):
            approval.set_threshold("disc", value=bad, by="Ada", reason="x")


def test_a_model_from_elsewhere_says_itself_what_it_is_of(models, tmp_path, monkeypatch):
    """Data version and commit of the checkout that registers it are not the model's."""
    use(tmp_path, monkeypatch)
    (tmp_path / "data.dvc").write_text("outs:\n- md5: aaaa.dir\n  path: data\n")
    model = models / "model1"
    evaluation = write_figures(tmp_path / "evaluation", model)

    found = stage.run(Params(), model_dir=model, evaluation_dir=evaluation)

    assert dvc.read_data_version(tmp_path) == "aaaa.dir"
    assert {version.data_version for version in found} == {"unknown"}


def test_an_evaluation_of_another_model_is_refused(models, tmp_path, monkeypatch):
    """The digest stands in metrics.json, and is compared before anything is stored."""
    use(tmp_path, monkeypatch)
    folder = write_figures(tmp_path / "scored", models / "model1")
    content = json.loads((folder / "metrics.json").read_text())
    for digest in ("f" * 64, None, 7):
        (folder / "metrics.json").write_text(json.dumps({**content, "model_digest": digest}))

        with pytest.raises(DataError, match=r"is not that of model [0-9a-f]{12}"):
            publish(models / "model1", evaluation_dir=folder, params={}, facts={})

    assert not (tmp_path / "mlflow.db").exists()


def locks():
    name = registered_name("disc")
    tags = store.connect().get_registered_model(name).tags
    return [key for key in tags if key.startswith("onenip.turn")]


def test_a_reason_is_text_and_no_instruction_to_a_terminal(started, tmp_path, monkeypatch):
    """Brackets neither hide words of the trail nor stop its readers; control characters are refused."""
    begin(started, tmp_path / "a", monkeypatch)
    reason = "[/x] [conceal]scratched[/conceal] :boom:"
    for bad in ({"by": "A\x1b[2Jda", "reason": "x"}, {"by": "Ada", "reason": "\x1b]0;x\x07"}):
        with pytest.raises(RegistryError, match="control characters"):
            approval.reject("disc", **bad)
    approval.reject("disc", by="Ada", reason=reason)

    said = CliRunner().invoke(app, ["audit", "disc"])

    assert (said.exit_code, reason in said.output) == (0, True)
    assert show("a\x1b[2J\n\u202e") == "a\\x1b[2J\n\\u202e"


def test_a_decided_version_is_not_decided_again(started, tmp_path, monkeypatch):
    """By number, too: name and reason of the first decision stay."""
    shutil.copytree(started, tmp_path / "a", ignore=shutil.ignore_patterns("mlartifacts"))
    use(tmp_path / "a", monkeypatch)
    approval.reject("disc", by="Ada", reason="worse", version=3)

    for again in (approval.reject, approval.approve):
        with pytest.raises(RegistryError, match=r"decided already: rejected by Ada .*\(worse\)"):
            again("disc", by="Grace", reason="hm", version=3)

    assert versions.find_version("disc", 3).reason == "worse"
