"""Workspaces as a user makes them, and as an update of the product finds them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from onenip.cli import app
from onenip.data import git
from onenip.params import Params
from onenip.version import __version__
from onenip.workspace import doctor
from onenip.workspace.code import STAGES, describe_code
from onenip.workspace.files import WorkspaceError, init, plan_upgrade, require_current

REMOTE = "s3://images/dvc #2, old"  # not the start of a comment, nor two


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workspace as `init` leaves it: only its files may be changed, and must be put back."""
    folder = tmp_path_factory.mktemp("plants") / "plant"
    init(folder, preset="demo", inbox="s3://images/inbox", remote=REMOTE)
    return folder


@pytest.fixture
def plant(made, monkeypatch):
    """The workspace as the current folder, put back as it was in the end."""
    monkeypatch.chdir(made)
    yield made
    git.run(["reset", "-q", "--hard", git.run(["rev-list", "--max-parents=0", "HEAD"], made)], made)


def replace_code(folder, stage, **values):
    """Write what another version or library would have noted for a stage."""
    content = read_code(folder)
    content[stage] |= values
    with (folder / "onenip.yaml").open("w") as file:
        YAML().dump(content, file)
    git.commit(["onenip.yaml"], message="Another version", root=folder)


def read_code(folder):
    return YAML(typ="safe", pure=True).load((folder / "onenip.yaml").read_text())


def edit_graph(folder, *, plant, earlier):
    """Edit dvc.yaml as a plant does, and as if an earlier version had shipped another one."""
    path = folder / "dvc.yaml"
    shipped = path.read_text()
    before = shipped.replace(*earlier)
    assert before != shipped
    assert plant[0] in before
    replace_code(folder, "files", **{"dvc.yaml": before})
    path.write_text(before.replace(*plant))
    git.commit(["dvc.yaml"], message="Our own stages", root=folder)


def test_a_new_workspace_is_complete(plant):
    """Params as chosen, everything in one commit, no code, and DVC reads its graph and remote."""
    dvc = [sys.executable, "-m", "dvc"]
    graph = subprocess.run(
        [*dvc, "dag", "--dot"], capture_output=True, text=True, check=True
    ).stdout
    remotes = subprocess.run([*dvc, "remote", "list"], capture_output=True, text=True, check=True)

    assert all(stage in graph for stage in STAGES)
    assert REMOTE in remotes.stdout
    assert Params.load("params.yaml").retrain.inbox == "s3://images/inbox"
    assert git.run(["status", "--porcelain"], plant) == ""
    assert git.run(["rev-list", "--count", "HEAD"], plant) == "1"
    assert not list(plant.glob("**/*.py"))
    assert "preset demo" in (plant / "README.md").read_text()


def test_a_folder_with_content_is_left_alone(tmp_path):
    """`init` refuses, and says so in a line; a kill's leftover is no content."""
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(WorkspaceError, match="not empty"):
        init(tmp_path)

    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("https://me:word@host/x", r"https://\*\*\*@host/x: it would be committed"),
        ("s3://b/p?key=word", "it would be committed"),
        ("plant\n[core]\nremote = other", "no name for DVC's remote"),
        ('a"b', "no name for DVC's remote"),
    ],
)
def test_no_remote_brings_a_password_or_a_setting_into_git(tmp_path, address, words):
    """It is refused before anything is made."""
    with pytest.raises(WorkspaceError, match=words):
        init(tmp_path / "plant", remote=address)

    assert not (tmp_path / "plant").exists()


@pytest.mark.parametrize(
    "content",
    [
        "version: 5",
        'version: "1"\nfiles: 5',
        'version: "1"\ntrain: [5]',
        'version: "1"\ntrain: {code: []}',
    ],
)
def test_a_damaged_note_of_the_version_is_a_line(plant, content):
    """Whoever reads onenip.yaml says how to bring it back; so does who reads another file of it."""
    (plant / "onenip.yaml").write_text(content)

    for work in (plan_upgrade, require_current):
        with pytest.raises(WorkspaceError, match=r"damaged; `git checkout onenip\.yaml`"):
            work()
    git.run(["checkout", "-q", "."], plant)
    (plant / ".gitignore").write_bytes(b"\xff")
    with pytest.raises(WorkspaceError, match="no text in UTF-8"):
        plan_upgrade()


@pytest.mark.usefixtures("plant")
def test_a_workspace_of_the_installed_version_has_nothing_to_upgrade():
    """Freshly made, it follows what is installed."""
    require_current()

    assert plan_upgrade().texts == {}


def test_an_update_reruns_the_stages_that_it_changes(plant):
    """Stages wait until `upgrade` was called; it shows why they run anew, and touches no other."""
    replace_code(plant, "train", code="0" * 16, libraries={"torch": "2.0.0"})
    with pytest.raises(
        WorkspaceError, match=r"train: its code changed.*torch 2\.0\.0 -> .*upgrade"
    ):
        require_current()
    shown = CliRunner().invoke(app, ["upgrade", "--dry-run"])
    assert "train runs anew" in shown.stdout
    assert "validate runs anew" not in shown.stdout
    assert plan_upgrade().texts

    done = CliRunner().invoke(app, ["upgrade", "--yes"])

    assert done.exit_code == 0, done.output
    assert read_code(plant).items() > describe_code().items()
    assert git.run(["log", "-1", "--format=%s"], plant).startswith("Upgrade to onenip")
    require_current()


def test_an_upgrade_keeps_the_values_of_params(plant):
    """Keys that this version added get their defaults, retired ones go; all other lines stay as they are."""
    shipped = (plant / "params.yaml").read_text()
    ours = shipped.replace("seed: 0 ", "# as in the pilot\nseed: 7 ")
    lines = [line for line in ours.splitlines() if not line.startswith("  min_new_images:")]
    older = "\n".join(lines).replace("\ndata:\n", "\ndata:\n  root: data\n") + "\n"
    older = older[: older.index("\n# Notices")]  # the last section
    (plant / "params.yaml").write_text(older)
    git.commit(["params.yaml"], message="An older version", root=plant)

    assert CliRunner().invoke(app, ["upgrade", "--yes"]).exit_code == 0

    assert (plant / "params.yaml").read_text() == ours
    assert Params.load("params.yaml").seed == 7


def test_params_written_another_way_are_written_anew(plant):
    """Where a file has not a line for each key, values are kept, and the difference shows the rest."""
    (plant / "params.yaml").write_text("seed: 7\ndata: {holdout_fraction: 0.1}\n")

    text = plan_upgrade().texts[Path("params.yaml")]
    (plant / "params.yaml").write_text(text)

    assert Params.load("params.yaml").data.holdout_fraction == 0.1
    assert Params.load("params.yaml").seed == 7


def test_an_upgrade_merges_changes_of_the_graph(plant):
    """What the plant added to dvc.yaml stays beside what the new version changed."""
    edit_graph(
        plant,
        plant=("title: Verdicts\n", "title: Verdicts\n# ours\n"),
        earlier=("cmd: onenip validate", "cmd: onenip check"),
    )

    done = CliRunner().invoke(app, ["upgrade", "--yes"])

    text = (plant / "dvc.yaml").read_text()
    assert done.exit_code == 0, done.output
    assert done.output.count("+    cmd: onenip validate") == 1
    assert "cmd: onenip validate" in text
    assert text.endswith("# ours\n")
    assert git.run(["status", "--porcelain"], plant) == ""
    assert plan_upgrade().texts == {}


def test_an_upgrade_leaves_a_conflict_to_a_person(plant):
    """Where both changed a line, both stand there, nothing is committed, and it says what to do."""
    edit_graph(
        plant,
        plant=("cmd: onenip check", "cmd: nice onenip check"),
        earlier=("cmd: onenip validate", "cmd: onenip check"),
    )

    done = CliRunner().invoke(app, ["upgrade", "--yes"])

    text = (plant / "dvc.yaml").read_text()
    assert done.exit_code == 1
    assert "edit dvc.yaml where <<<<<<< stands, then\n  git commit" in done.output
    assert "<<<<<<< yours\n    cmd: nice onenip check\n=======\n    cmd: onenip validate" in text
    assert git.run(["log", "-1", "--format=%s"], plant) == "Our own stages"


def test_an_upgrade_loses_no_change(plant):
    """What is in no commit yet is not replaced."""
    replace_code(plant, "train", code="0" * 16)
    (plant / "onenip.yaml").write_text((plant / "onenip.yaml").read_text() + "# mine\n")

    assert "commit it first" in str(CliRunner().invoke(app, ["upgrade", "--yes"]).exception)


def test_the_doctor_names_a_remedy_for_what_is_missing(tmp_path, monkeypatch):
    """Outside of a workspace, with a server that is down, each has its line; nothing is made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:word@127.0.0.1:9")
    result = CliRunner().invoke(app, ["doctor"])

    assert result.exit_code == 1
    for words in ("onenip init DIR", "does not answer", "GiB free", "clock"):
        assert words in result.stdout
    assert "word" not in result.stdout
    assert not list(tmp_path.iterdir())


class _OddServer(BaseHTTPRequestHandler):
    """Says no time, and never ends its answer."""

    def do_GET(self):
        self.send_response_only(200)
        self.send_header("Date", "tomorrow")
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"x" * 1000)
                time.sleep(0.05)


def test_the_doctor_is_not_held_by_an_odd_server(monkeypatch):
    """A body without end is not read, and a date that is none is no fault."""
    with HTTPServer(("127.0.0.1", 0), _OddServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.delenv("PREFECT_API_URL", raising=False)
        found = {one.subject: one for one in doctor.examine_servers()}
        server.shutdown()

    assert "answers at" in found["mlflow"].text
    assert not found["clock"].remedy


def test_the_version_needs_no_command():
    """`onenip --version` prints it, and nothing else."""
    result = CliRunner().invoke(app, ["--version"])

    assert (result.exit_code, result.output.strip()) == (0, __version__)
