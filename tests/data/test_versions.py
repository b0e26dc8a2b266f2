"""Versions of the data: what a download leaves in DVC and Git, wherever it is killed, and the way of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
from typer.testing import CliRunner

from onenip.cli import app
from onenip.data import dvc
from onenip.data.git import commit
from onenip.data.manifest import DATA_DIR
from onenip.errors import DataError, VersioningError
from onenip.images import hash_file
from onenip.registry.data_history import compare_files, compare_versions, list_history
from onenip.stages import download, validate
from tests.paths import ROOT
from tests.sources.originals import pack_zip, picture
from tests.sources.web import Web, running_web
from tests.tiny import make_tiny_params

IDENTITY = ["-c", "user.name=A", "-c", "user.email=a@example.com"]


def git(folder: Path, *arguments: str) -> str:
    """What Git says."""
    command = ["git", *IDENTITY, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def run_dvc(folder: Path, *arguments: str) -> str:
    """Run DVC; gives what it prints."""
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def is_up_to_date(folder: Path) -> bool:
    """Whether `dvc repro` would do nothing."""
    return json.loads(run_dvc(folder, "status", "--json") or "{}") == {}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A checkout of Git and DVC without data, with this project's params."""
    folder = tmp_path_factory.mktemp("template") / "checkout"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    run_dvc(folder, "init", "-q")
    for name in ("params.yaml", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "Start")
    return folder


@pytest.fixture
def checkout(template, tmp_path, monkeypatch):
    """A checkout of this test's own, and the current folder."""
    folder = Path(shutil.copytree(template, tmp_path / "checkout", symlinks=True))
    monkeypatch.chdir(folder)
    return folder


def make_source(folder: Path, numbers: range, *, category: str = "a") -> Path:
    """A folder with one picture for each number."""
    (folder / category).mkdir(parents=True)
    for number in numbers:
        (folder / category / f"{number}.png").write_bytes(picture(number))
    return folder


def bring(*sources: Path) -> download.DownloadResult:
    """Download into the current checkout, as the command does."""
    return download.run(make_tiny_params(), sources=list(map(str, sources)), data_dir=Path("data"))


def tree(folder: Path) -> dict[str, str]:
    """Hash of every file by its path."""
    return {
        p.relative_to(folder).as_posix(): hash_file(p) for p in folder.rglob("*") if p.is_file()
    }


def test_a_download_names_its_version_and_a_failure_keeps_it(checkout, tmp_path):
    """data.dvc names what was brought; what DVC refuses leaves data and data.dvc as they were."""
    first = make_source(tmp_path / "one", range(3))
    second = make_source(tmp_path / "two", range(2, 5))

    result = bring(first)

    assert (checkout / ".onenip/dvc").is_dir()  # DVC's index, which is nobody else's
    assert result.version == dvc.read_data_version()
    assert git(checkout, "status", "--porcelain").split() == ["??", "data.dvc"]
    before, pointer = tree(Path("data")), Path("data.dvc").read_bytes()
    (checkout / "dvc.yaml").write_text("stages: [")
    with pytest.raises(VersioningError):
        bring(second)
    assert (tree(Path("data")), Path("data.dvc").read_bytes()) == (before, pointer)
    (checkout / "dvc.yaml").unlink()
    assert bring(second).version != result.version
    assert bring(first).version == result.version


def test_a_refused_first_download_leaves_nothing(checkout, tmp_path):
    """Where there was no data before, none is left by a download that could not be versioned."""
    (checkout / "dvc.yaml").write_text("stages: [")

    with pytest.raises(VersioningError):
        bring(make_source(tmp_path / "one", range(3)))

    assert not Path("data").exists()
    assert not Path("data.dvc").exists()


@pytest.mark.slow
@pytest.mark.drill
def test_kills_at_random_moments_change_nothing_in_the_end(checkout, tmp_path, drill):
    """SIGKILL again and again; in between the data is the old or the new, in the end the same bytes."""
    old = make_source(tmp_path / "old", range(5))
    new = tmp_path / "new.zip"
    new.write_bytes(pack_zip({f"b/{i}.png": picture(i) for i in range(300)}))
    bring(old)
    before = tree(Path("data"))
    command = [sys.executable, "-m", "onenip", "download", "--source", str(new)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    kills, chance = drill.choose(1, 12), drill.draw()
    for _ in range(kills):
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL
        )
        folder = Path(".onenip/download/data")
        while process.poll() is None and not (folder / "tree").exists():
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 1.5))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
        if Path("data").exists():
            assert len(tree(Path("data"))) in (len(before), 300)
        bring(old)  # recovers, and goes back
        assert tree(Path("data")) == before

    result = bring(new)

    assert len(tree(Path("data"))) == 300
    assert result.version == dvc.read_data_version()
    folder = checkout / ".onenip/download/data"
    assert not list(folder.iterdir())
    shutil.rmtree("data")
    run_dvc(checkout, "checkout", "data.dvc")
    assert len(tree(Path("data"))) == 300
    drill.note("kills of a download, while it is moved in", kills)


@pytest.fixture(
    params=[
        pytest.param("folder", marks=pytest.mark.slow),
        pytest.param("http", marks=pytest.mark.slow),
        "s3",
    ]
)
def remote(request, tmp_path, monkeypatch):
    """300 new images in a folder, behind a slow HTTP server or in a bucket: the --source."""
    files = {f"b/{i}.png": picture(i) * 4 for i in range(300)}
    if request.param == "folder":
        for name, body in files.items():
            (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "new" / name).write_bytes(body)
        yield str(tmp_path / "new")
    elif request.param == "http":
        with running_web(Web(pause=0.02)) as web:
            web.files["/new.zip"] = pack_zip(files)
            yield f"{web.address}/new.zip"
    else:
        server = request.getfixturevalue("s3_server")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        client = boto3.Session().client("s3")
        for name, body in files.items():
            client.put_object(Bucket="images", Key=f"kills/{name}", Body=body)
        yield "s3://images/kills"


@pytest.mark.slow
@pytest.mark.drill
def test_kills_while_fetching_end_in_the_same_bytes(checkout, tmp_path, remote, drill):
    """SIGKILL again and again, wherever it goes on: the old data, then exactly the new."""
    bring(make_source(tmp_path / "old", range(5)))
    before = tree(Path("data"))
    expected = {f"b/train/good/{i}.png": picture(i) * 4 for i in range(300)}
    command = [sys.executable, "-m", "onenip", "download", "--source", remote]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    chance = drill.draw()
    killed = 0
    for _ in range(drill.choose(2, 10)):
        process = subprocess.Popen(
            command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL
        )
        time.sleep(chance.uniform(0.3, 2.5))  # the first part of a second goes to imports
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait(timeout=60)
        assert not Path("data").exists() or len(tree(Path("data"))) in (len(before), 300)

    subprocess.run(command, env=environment, check=True, capture_output=True)

    assert killed
    found = {p.relative_to("data").as_posix(): p for p in Path("data").rglob("*.png")}
    assert {name: path.read_bytes() for name, path in found.items()} == expected
    assert not list(Path(".onenip/download/data").iterdir())
    assert is_up_to_date(checkout)
    drill.note("kills of a download, while it is fetched from folder, HTTP or S3", killed)


@pytest.mark.parametrize("content", [b"\xff", b"", b"outs: [5]", b"[" * 5000, None])
def test_a_damaged_pointer_is_said_to_be_none(tmp_path, content):
    """Bytes that are no text, no YAML or no pointer, and a folder in its place."""
    if content is None:
        (tmp_path / "data.dvc").mkdir()
    else:
        (tmp_path / "data.dvc").write_bytes(content)

    with pytest.raises(DataError, match="pointer of DVC"):
        dvc.read_data_version(tmp_path)
    assert dvc.count_files(tmp_path) == 0


@pytest.mark.parametrize("text", ["", '{"read": {}, "wri', "zombie"])
def test_a_lock_that_a_killed_process_left_stops_nobody(checkout, tmp_path, text):
    """DVC's lock file, cut off or naming a process that is dead but not buried, is cleared away."""
    with subprocess.Popen(["true"]) as process:
        while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "Z":
            time.sleep(0.01)
        owner = {"pid": process.pid, "cmd": "dvc add"}
        lock = json.dumps({"read": {}, "write": {str(checkout / "data"): owner}})
        Path(".dvc/tmp/rwlock").write_text(lock if text == "zombie" else text)

        assert bring(make_source(tmp_path / "one", range(3))).version


def test_the_circle_through_s3_ends_without_work(checkout, s3_server, tmp_path, monkeypatch):
    """Download, add, push, fresh clone, pull: the same bytes, and the stage is not run again."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    counter = tmp_path / "runs"
    (checkout / "dvc.yaml").write_text(
        "stages:\n  count:\n"
        f"    cmd: echo run >> {counter} && ls -R data > listing.txt\n"
        "    deps: [data]\n    outs: [listing.txt]\n"
    )
    run_dvc(checkout, "remote", "add", "-q", "-d", "team", "s3://dvc-cache/circle")
    bring(make_source(tmp_path / "one", range(6)))
    lines = []
    dvc.repro(on_line=lines.append)
    assert "Running stage 'count':" in lines
    assert not [line for line in lines if not line or "git add" in line or "dvc " in line]
    assert dvc.has_remote()
    dvc.push()
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "Add data")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(checkout), str(clone))

    run_dvc(clone, "pull")
    dvc.repro(root=clone)

    assert tree(clone / "data") == tree(checkout / "data")
    assert counter.read_text() == "run\n"
    assert is_up_to_date(clone)
    assert dvc.read_data_version(clone) == dvc.read_data_version(checkout)


def test_a_damaged_file_of_the_cache_is_noticed_before_training(checkout, tmp_path):
    """DVC lays out whatever its cache holds; what a person changed by hand is no damage."""
    bring(make_source(tmp_path / "in", range(4)))
    image = checkout / "data/a/train/good/0.png"
    image.write_bytes(picture(77))
    assert dvc.find_damaged() == {}
    image.write_bytes(picture(0))
    md5 = dvc.list_files(dvc.read_data_version())["a/train/good/0.png"]
    kept = checkout / ".dvc/cache/files/md5" / md5[:2] / md5[2:]
    kept.chmod(0o644)
    kept.write_bytes(picture(0)[:-1] + b"x")
    kept.chmod(0o444)
    shutil.rmtree(checkout / "data")
    run_dvc(checkout, "checkout", "-q")

    with pytest.raises(DataError, match=r"0\.png: it came from a damaged file of DVC's cache"):
        validate.run(make_tiny_params(), data_dir=DATA_DIR, out_dir=tmp_path / "out")


def test_the_history_names_every_version_and_what_changed(checkout, tmp_path, monkeypatch):
    """Each committed version has its date and counts; two versions differ by what came, went and moved."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    first = bring(make_source(tmp_path / "one", range(4)))
    git(checkout, "add", "data.dvc")
    git(checkout, "commit", "-q", "-m", "First\u2028images")
    two = make_source(tmp_path / "two", range(1, 6))
    (two / "a/3.png").rename(two / "a/moved.png")
    (two / "a/2.png").write_bytes(picture(77))
    second = bring(two, make_source(tmp_path / "three", range(90, 92), category="b"))

    entries = list_history(checkout)

    assert [entry.version for entry in entries] == [second.version, first.version]
    assert [entry.images for entry in entries] == [{"a": 5, "b": 2}, {"a": 4}]
    assert [entry.subject for entry in entries] == ["uncommitted", "First\u2028images"]
    for old in ("HEAD", "main", first.version, first.version[:8]):
        change = compare_versions(old, None, root=checkout)
        good = "a/train/good"
        assert change.removed == (f"{good}/0.png",)
        assert change.changed == (f"{good}/2.png",)
        assert change.moved == ((f"{good}/3.png", f"{good}/moved.png"),)
        assert change.added == (
            f"{good}/4.png",
            f"{good}/5.png",
            "b/train/good/90.png",
            "b/train/good/91.png",
        )
    with pytest.raises(DataError, match="nothing: is no version"):
        compare_versions("nothing", None, root=checkout)
    shown = CliRunner().invoke(app, ["data", "log"])
    assert "First" in shown.output
    assert "a 5, b 2" in shown.output
    shown = CliRunner().invoke(app, ["data", "diff", "HEAD"])
    assert "  + b/train/good/90.png" in shown.output
    assert "  > a/train/good/3.png -> a/train/good/moved.png" in shown.output
    commit(["data.dvc"], message="Arrived", branch="onenip/arrivals")
    subjects = [(entry.subject, entry.version) for entry in list_history(checkout)]
    assert sorted(subjects) == [("Arrived", second.version), ("First\u2028images", first.version)]


def test_a_file_that_was_copied_is_added_not_moved():
    """Bytes that are still where they were did not move."""
    change = compare_files({"x": "1"}, {"x": "1", "y": "1"}, names=("a", "b"))

    assert change.added == ("y",)
    assert change.moved == ()
