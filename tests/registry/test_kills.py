"""A kill at every single write to the registry: repeating the command ends as without the kill."""

from __future__ import annotations

import os
import shutil

import pytest
from mlflow import MlflowClient

from onenip import Detector
from onenip.errors import RegistryError
from onenip.registry import approval, audit, decisions, versions
from onenip.registry.publishing import publish
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
    "log_batch",
    "create_logged_model",
    "log_model_artifacts",
    "finalize_logged_model",
    "log_artifacts",
    "log_text",
    "create_experiment",
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
            prompts={"disc": state.prompts},
            statistics={"disc": state.statistics},
        )
        detector.save(folder / f"model{number}")
        write_figures(folder / f"scored{number}")
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


@pytest.mark.parametrize("action", ["approve", "reject", "rollback", "threshold"])
def test_a_decision_killed_anywhere_ends_as_without_a_kill(started, tmp_path, monkeypatch, action):
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


def test_another_command_completes_a_killed_decision(started, tmp_path, monkeypatch):
    """`status` finds what was begun, completes it under the name that it was begun in, and says so."""
    killer = Killer(monkeypatch)
    shutil.copytree(started, tmp_path / "a", ignore=shutil.ignore_patterns("mlartifacts"))
    use(tmp_path / "a", monkeypatch)
    killer.left = 4
    with pytest.raises(KilledError):
        approval.rollback("disc", by="Grace", reason="false alarms")
    killer.left = None

    (entry,) = approval.reconcile("disc")

    assert (entry.action, entry.by, entry.champion) == ("rollback", "Grace", 1)
    assert approval.reconcile("disc") == []
    assert versions.find_version("disc", 2).approval == "rejected"


def test_a_registration_killed_anywhere_ends_as_without_a_kill(models, tmp_path, monkeypatch):
    """A version, a challenger and an entry, each once; whatever the first attempt left behind."""
    killer = Killer(monkeypatch)
    for at in (None, *range(60)):
        folder = tmp_path / str(at)
        folder.mkdir()
        if at is not None:
            shutil.copy(tmp_path / "empty.db", folder / "mlflow.db")
        use(folder, monkeypatch)
        killer.left, killer.count = None, 0
        if at is None:
            from onenip.registry import store

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


def locks():
    name = versions.registered_name("disc")
    tags = MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).get_registered_model(name).tags
    return [key for key in tags if key.startswith("onenip.turn")]


def test_a_decided_version_is_not_decided_again(started, tmp_path, monkeypatch):
    """By number, too: name and reason of the first decision stay."""
    shutil.copytree(started, tmp_path / "a", ignore=shutil.ignore_patterns("mlartifacts"))
    use(tmp_path / "a", monkeypatch)
    approval.reject("disc", by="Ada", reason="worse", version=3)

    for again in (approval.reject, approval.approve):
        with pytest.raises(RegistryError, match=r"decided already: rejected by Ada .*\(worse\)"):
            again("disc", by="Grace", reason="hm", version=3)

    assert versions.find_version("disc", 3).reason == "worse"
