"""DVC, through its command line: which data, is it up to date, in cache and remote.

A DVC command takes seconds: callers batch, and ask for `read_data_version`, which only reads `data.dvc`,
wherever that is enough.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import psutil
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from onenip.data import git
from onenip.data.git import HERE, QUIET
from onenip.errors import DataError, RemoteError, StageError, VersioningError

DATA_POINTER = Path("data.dvc")
FLOW_PROCESS = "ONENIP_FLOW_PROCESS"  # number and start of the process that asked for a stage

_SETTLE_SECONDS = 0.2
_TAIL_LINES = 15
# advice that the pipeline follows by itself, or leaves to a person at its end
_ADVICE = (
    "To track the changes with git",
    "git add ",
    "To enable auto staging",
    "dvc config core.autostage",
    "Use `dvc push`",
)
_PID = re.compile(r'"pid": (\d+)')


@dataclass(frozen=True)
class DataRevision:
    """One version of the data in the history of `data.dvc`.

    Attributes:
        commit: Git commit, 40 hex digits.
        date: when it was committed, with its time zone.
        author: who committed it.
        subject: first line of the commit message.
        version: what DVC calls the data, such as `5f1c….dir`.
    """

    commit: str
    date: datetime
    author: str
    subject: str
    version: str


def init(root: Path) -> None:
    """Set DVC up at the top of a Git repository.

    Raises:
        VersioningError: if DVC refuses.
    """
    _dvc(["init", "-q"], root)


def is_checkout(root: Path = HERE) -> bool:
    """Whether `root` is the top of a project that DVC versions."""
    return (root / ".dvc").is_dir()


def read_data_version(root: Path = HERE, *, pointer: Path = DATA_POINTER) -> str | None:
    """What `data.dvc` names, such as `5f1c….dir`; None without such a file.

    Raises:
        DataError: if the file is there, and is no pointer of DVC.
    """
    path = root / pointer
    try:
        return _parse_pointer(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return None
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: no pointer of DVC can be read: {error}", path=path) from error


def count_files(root: Path = HERE) -> int:
    """How many files `data.dvc` names; 0 without such a file, or if it does not say."""
    try:
        out = YAML(typ="safe", pure=True).load((root / DATA_POINTER).read_text(encoding="utf-8"))
        return int(out["outs"][0].get("nfiles", 0))
    except (OSError, YAMLError, LookupError, TypeError, ValueError, RecursionError, AttributeError):
        return 0


def has_remote(*, root: Path = HERE) -> bool:
    """Whether DVC has a default remote to push to."""
    try:
        return bool(_dvc(["remote", "default"], root).strip())
    except VersioningError:
        return False


def describe_checkout(root: Path = HERE) -> dict[str, str]:
    """Which data and which code this checkout holds, as tags of a model.

    Returns:
        `data_version` and `git_commit` ("unknown" where there is none), and `git_dirty` (true, false).
    """
    return {
        "data_version": read_data_version(root) or "unknown",
        "git_commit": git.current_commit(root) or "unknown",
        "git_dirty": str(git.is_dirty(root)).lower(),
    }


def add(paths: Sequence[Path | str], *, root: Path = HERE) -> None:
    """Put files or folders under DVC: their content goes to its cache, `<path>.dvc` names it.

    The files themselves stay as they are, so that a kill leaves no hole; `dvc checkout --relink` replaces
    them by links, where a cache is set up for links.

    Raises:
        VersioningError: if DVC refuses, or the disk is full.
    """
    _dvc(["add", "--no-relink", *map(str, paths)], root)


def push(targets: Sequence[str] = (), *, remote: str | None = None, root: Path = HERE) -> None:
    """Upload what the checkout names to the team's remote; credentials come from the environment.

    Raises:
        RemoteError: if there is no remote, or it refuses.
    """
    _ask_remote(["push", *_remote_option(remote), *targets], root)


def count_unpushed(root: Path = HERE) -> int:
    """How many files of the data the team's remote does not have.

    Raises:
        RemoteError: if the remote does not answer, or refuses.
    """
    return len(json.loads(_ask_remote(["status", "--cloud", "--json", str(DATA_POINTER)], root)))


def find_user(root: Path = HERE) -> str:
    """Another process's DVC that is at work in the checkout, for a sentence; empty if there is none."""
    path = root / ".dvc" / "tmp" / "rwlock"
    _drop_dead_locks(root)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return ""
    users = {int(pid) for pid in _PID.findall(text)} - {os.getpid()}
    alive = sorted(pid for pid in users if _is_alive(pid))
    return f"dvc (process {alive[0]})" if alive else ""


def repro(
    stage: str | None = None,
    *,
    root: Path = HERE,
    force: bool = False,
    pull_missing: bool = False,
    on_line: Callable[[str], None] | None = None,
) -> None:
    """Bring a stage of `dvc.yaml`, and what it depends on, up to date.

    Args:
        stage: name of the stage; None means all of them.
        root: the checkout.
        force: run the stage even if nothing changed.
        pull_missing: fetch outputs from the remote instead of making them, where it has them.
        on_line: called with each line that DVC and the stages print, as it comes, but for DVC's advice; by
            default they go to this process's own output.

    Raises:
        StageError: if the stage, or DVC, fails; the message ends with the last lines.
    """
    options = ["--force"] * force + ["--pull", "--allow-missing"] * pull_missing
    command = [*_dvc_command(), "repro", *options, *([stage] if stage else [])]
    _drop_dead_locks(root)
    code, tail = _stream(command, root, on_line)
    if code:
        name = stage or "pipeline"
        raise StageError(f"{name}: `dvc repro` failed with status {code}\n{tail}".rstrip())


def list_revisions(root: Path = HERE) -> list[DataRevision]:
    """Every version of the data in the history of HEAD and of local branches, newest first."""
    form = "--format=%H%x00%cI%x00%an%x00%s"
    log = git.try_run(
        ["log", "HEAD", "--branches", form, "--diff-filter=ACMRT", "--", str(DATA_POINTER)], root
    )
    revisions = []
    for line in (log or "").split("\n"):  # a subject may hold other ends of lines
        if not line:
            continue
        commit_, date, author, subject = line.split("\0", 3)
        text = git.run(["show", f"{commit_}:./{DATA_POINTER}"], root)
        version = _parse_pointer(text, f"{commit_[:9]}:{DATA_POINTER}")
        revisions.append(
            DataRevision(commit_, datetime.fromisoformat(date), author, subject, version)
        )
    return revisions


def read_version_at(revision: str, *, root: Path = HERE) -> str:
    """What `data.dvc` named at a Git revision (commit, tag, branch).

    Raises:
        VersioningError: if there is no such revision, or it has no `data.dvc`.
    """
    text = git.run(["show", f"{revision}:./{DATA_POINTER}"], root)
    return _parse_pointer(text, f"{revision}:{DATA_POINTER}")


def list_files(version: str, *, root: Path = HERE) -> dict[str, str]:
    """Files of one version of the data: path below `data/` to md5 of its bytes.

    Args:
        version: as `read_data_version` gives it.
        root: the checkout.

    Raises:
        VersioningError: if neither DVC's cache nor its remote holds the list.
    """
    listing = _cache_dir(root.resolve()) / "files" / "md5" / version[:2] / version[2:]
    if not listing.is_file():
        raise VersioningError(
            f"data version {version}: its list of files is not in DVC's cache; "
            "run `dvc fetch --all-commits data.dvc` first"
        )
    entries = json.loads(listing.read_text(encoding="utf-8"))
    return {entry["relpath"]: entry["md5"] for entry in entries}


def find_damaged(root: Path = HERE) -> dict[str, Path]:
    """Files of the data that DVC laid out from damaged files of its cache: path below `data/` to that file.

    DVC trusts its cache: it compares no content when it lays files out. What somebody changed in `data/`
    since is not meant, nor what no list in the cache names.

    Raises:
        DataError: if `data.dvc` is no pointer of DVC.
    """
    version = read_data_version(root)
    if version is None or not is_checkout(root):
        return {}
    try:
        listed = list_files(version, root=root)
    except (VersioningError, ValueError):  # not pulled, or a single file
        return {}
    cache = _cache_dir(root.resolve()) / "files" / "md5"
    found = {}
    for name, md5 in sorted(listed.items()):
        path, kept = root / DATA_POINTER.stem / name, cache / md5[:2] / md5[2:]
        if path.is_file() and _hash(path) != md5 and kept.is_file() and _hash(kept) != md5:
            found[name] = kept
    return found


def _hash(path: Path) -> str:
    """md5 of a file's bytes, as DVC names them: 32 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _parse_pointer(text: str, name: str) -> str:
    try:
        return str(YAML(typ="safe", pure=True).load(text)["outs"][0]["md5"])
    except (YAMLError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{name}: not a pointer of DVC", path=name) from error


@lru_cache(maxsize=8)  # asking DVC takes a second
def _cache_dir(root: Path) -> Path:
    return root / Path(_dvc(["cache", "dir"], root).strip())


def _remote_option(remote: str | None) -> list[str]:
    return ["--remote", remote] if remote else []


def _dvc_command() -> list[str]:
    return [sys.executable, "-m", "dvc"]


def _dvc(arguments: Sequence[str], root: Path) -> str:
    _drop_dead_locks(root)
    return git.run_command([*_dvc_command(), *arguments], root, "dvc", _settings(root))


def _settings(root: Path) -> dict[str, str]:
    """DVC's index of a checkout is kept below it, not in a folder that all users of the machine share."""
    folder = os.environ.get("DVC_SITE_CACHE_DIR") or str((root / ".onenip" / "dvc").resolve())
    return {"DVC_SITE_CACHE_DIR": folder}


def _ask_remote(arguments: Sequence[str], root: Path) -> str:
    try:
        return _dvc(arguments, root)
    except VersioningError as error:
        raise RemoteError(str(error)) from error


def _stream(
    command: Sequence[str], root: Path, on_line: Callable[[str], None] | None
) -> tuple[int, str]:
    """Exit status and last lines of a command whose lines are handed on as they come, if anybody listens."""
    env = os.environ | QUIET | _settings(root)
    # stages call `onenip`, which lies beside this interpreter
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    env[FLOW_PROCESS] = f"{os.getpid()} {psutil.Process().create_time()}"
    if on_line is None:
        return subprocess.run(command, cwd=root, env=env, check=False).returncode, ""
    tail: list[str] = []
    env["PYTHONUNBUFFERED"] = "1"
    with subprocess.Popen(
        command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            text = line.rstrip()
            if not text or text.strip().startswith(_ADVICE):
                continue
            on_line(text)
            tail = [*tail, text][-_TAIL_LINES:]
    return process.returncode, "\n".join(tail)


def _drop_dead_locks(root: Path) -> None:
    """Remove the lock file of DVC if only killed processes left it; DVC takes a zombie for alive."""
    path = root / ".dvc" / "tmp" / "rwlock"
    for pause in (_SETTLE_SECONDS, 0.0):
        try:
            text = path.read_text(encoding="utf-8")
            owners = {int(pid) for pid in _PID.findall(json.dumps(json.loads(text)))}
        except FileNotFoundError:
            return
        except ValueError:  # half-written: by a process at work, or by one that was killed
            time.sleep(pause)
            continue
        if not owners or any(_is_alive(pid) for pid in owners):
            return
    path.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
