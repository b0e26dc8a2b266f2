"""Git, through its command line: commits, and a branch that a team shares through a remote."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from onenip.errors import RemoteError, VersioningError

HERE = Path()
QUIET = {"DVC_NO_ANALYTICS": "1", "DO_NOT_TRACK": "true", "GIT_TERMINAL_PROMPT": "0"}


def is_checkout(root: Path = HERE) -> bool:
    """Whether `root` lies in a working tree of Git."""
    return try_run(["rev-parse", "--is-inside-work-tree"], root) == "true"


def current_commit(root: Path = HERE) -> str | None:
    """Commit of HEAD, 40 hex digits; None outside of Git or before the first commit."""
    return try_run(["rev-parse", "--verify", "-q", "HEAD"], root)


def current_branch(root: Path = HERE) -> str | None:
    """Name of the branch that is checked out; None if HEAD is detached, or outside of Git."""
    return try_run(["symbolic-ref", "--short", "-q", "HEAD"], root)


def find_commit(revision: str, *, root: Path = HERE) -> str | None:
    """Commit that a revision (commit, tag, branch) names, 40 hex digits; None if there is none."""
    return try_run(["rev-parse", "--verify", "-q", f"{revision}^{{commit}}"], root)


def is_ancestor(commit: str, *, root: Path = HERE) -> bool:
    """Whether HEAD is a commit or has it in its history."""
    return try_run(["merge-base", commit, "HEAD"], root) == commit


def is_dirty(root: Path = HERE) -> bool:
    """Whether files known to Git were changed since HEAD."""
    return bool(try_run(["status", "--porcelain", "--untracked-files=no"], root))


def commit(
    paths: Sequence[Path | str],
    *,
    message: str,
    branch: str | None = None,
    root: Path = HERE,
) -> str:
    """Commit files, and only those, on a branch.

    On another branch than the one checked out, the files of the working tree are committed there without
    touching the working tree or the index; a new branch starts at HEAD.

    Args:
        paths: relative to `root`; a path that no longer exists is a deletion.
        message: of the commit.
        branch: where to; None means the branch that is checked out.
        root: the checkout.

    Returns:
        The commit, 40 hex digits; the branch's present one if the files are in it already.

    Raises:
        VersioningError: if Git refuses.
    """
    names = [str(path) for path in paths]
    if branch is None or branch == current_branch(root):
        run(["add", "--", *names], root)
        if run(["status", "--porcelain", "--", *names], root):
            run([*_identity(root), "commit", "-q", "-m", message, "--", *names], root)
        return run(["rev-parse", "HEAD"], root)
    reference = f"refs/heads/{branch}"
    tip = try_run(["rev-parse", "--verify", "-q", reference], root)
    parent = tip or run(["rev-parse", "HEAD"], root)
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        run(["read-tree", parent], root, index)
        run(["add", "--", *names], root, index)
        tree = run(["write-tree"], root, index)
    if tree == run(["rev-parse", f"{parent}^{{tree}}"], root):
        new = parent
    else:
        new = run([*_identity(root), "commit-tree", tree, "-p", parent, "-m", message], root)
    run(["update-ref", reference, new, tip or "0" * 40], root)
    return new


def follow(branch: str, *, remote: str, root: Path = HERE) -> None:
    """Bring a local branch up to what the remote has; commits that were not pushed yet stay.

    Raises:
        RemoteError: if the remote cannot be reached.
        VersioningError: if both went on in different ways.
    """
    reference = f"refs/heads/{branch}"
    listed = _ask(["ls-remote", remote, reference], remote, root)
    if not listed:
        return
    theirs, ours = listed.split()[0], find_commit(reference, root=root)
    if theirs == ours:
        return
    _ask(["fetch", "-q", "--no-tags", remote, reference], remote, root)
    common = try_run(["merge-base", ours, theirs], root) if ours else None
    if ours is not None and common == theirs:
        return
    if ours is not None and common != ours:
        raise VersioningError(
            f"branch {branch} went on here and on {remote} in different ways; "
            f"merge {remote}/{branch} into it first"
        )
    if current_branch(root) == branch:
        raise VersioningError(f"branch {branch} is behind {remote}; run `git pull && dvc checkout`")
    run(["update-ref", reference, theirs, ours or "0" * 40], root)


def push(branch: str, *, remote: str, root: Path = HERE) -> None:
    """Upload a branch; doing it again changes nothing.

    Raises:
        RemoteError: if the remote cannot be reached, or refuses.
    """
    reference = f"refs/heads/{branch}"
    _ask(["push", "-q", remote, f"{reference}:{reference}"], remote, root)


def merge_texts(
    ours: str, base: str, theirs: str, *, titles: tuple[str, str, str]
) -> tuple[str, bool]:
    """A text with the changes of two sides, and whether none of them meet.

    Where they meet, both stand there between Git's markers.

    Args:
        ours: one side's text.
        base: what both sides started from.
        theirs: the other side's text.
        titles: of the three, in the markers.

    Raises:
        VersioningError: if Git is not installed, or takes one of them for no text.
    """
    with tempfile.TemporaryDirectory() as folder:
        names = ("ours", "base", "theirs")
        for name, text in zip(names, (ours, base, theirs), strict=True):
            (Path(folder) / name).write_text(text, encoding="utf-8")
        labels = [word for title in titles for word in ("-L", title)]
        command = ["git", "merge-file", "-p", "-q", *labels, *names]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise VersioningError("git: not installed") from error
    if done.returncode > 127:  # below, it is the number of conflicts
        raise VersioningError(f"git: `merge-file` {titles[0]}: {done.stderr.strip()}")
    return done.stdout, done.returncode == 0


def run(arguments: Sequence[str], root: Path, env: dict[str, str] | None = None) -> str:
    """What a Git command prints, stripped.

    Raises:
        VersioningError: if Git refuses.
    """
    return run_command(["git", *arguments], root, "git", env or {}).strip()


def try_run(arguments: Sequence[str], root: Path) -> str | None:
    """What a Git command prints, None if that is nothing or it refuses."""
    try:
        return run(arguments, root) or None
    except VersioningError:
        return None


def run_command(command: Sequence[str], root: Path, name: str, env: dict[str, str]) -> str:
    """Run a command; gives what it prints.

    Args:
        command: program and arguments.
        root: folder that it runs in.
        name: of the program, for errors.
        env: added to this process's environment.

    Raises:
        VersioningError: if it is not installed or exits non-zero; the message ends with what it said.
    """
    try:
        done = subprocess.run(
            command,
            cwd=root,
            env=os.environ | QUIET | env,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise VersioningError(f"{name}: not installed, or no folder {root}") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        words = " ".join([word for word in command if not word.startswith(sys.prefix)][:4])
        problem = next((line for line in said if line.startswith(("ERROR", "fatal"))), "")
        if problem.endswith(":"):  # the reason stands on the next line
            problem = " ".join(said[said.index(problem) :][:2])
        problem = problem or (said[-1] if said else f"status {done.returncode}")
        raise VersioningError(f"{name}: `{words}`: {problem}")
    return done.stdout


def _ask(arguments: list[str], remote: str, root: Path) -> str:
    try:
        return run(arguments, root)
    except VersioningError as error:
        hint = "retrain.git_remote names another remote, `retrain.push: false` needs none"
        raise RemoteError(f"Git remote {remote}: {error}; {hint}") from error


def _identity(root: Path) -> list[str]:
    """Options that name a committer where the machine names none, as a container does."""
    if try_run(["var", "GIT_COMMITTER_IDENT"], root) and try_run(["config", "user.email"], root):
        return []
    return ["-c", "user.name=onenip", "-c", "user.email=onenip@localhost"]
