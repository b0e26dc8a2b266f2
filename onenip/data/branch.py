"""A branch that a team shares through a Git remote: followed before it is added to, then pushed."""

from __future__ import annotations

from pathlib import Path

from onenip.data.processes import RemoteError, VersioningError
from onenip.data.versioning import HERE, current_branch, find_commit, run_git, try_git


def has_remote(remote: str | None, *, root: Path = HERE) -> bool:
    """Whether the checkout knows a Git remote of this name."""
    return remote is not None and try_git(["remote", "get-url", remote], root) is not None


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
    common = try_git(["merge-base", ours, theirs], root) if ours else None
    if ours is not None and common == theirs:
        return
    if ours is not None and common != ours:
        raise VersioningError(
            f"branch {branch} went on here and on {remote} in different ways; "
            f"merge {remote}/{branch} into it first"
        )
    if current_branch(root) == branch:
        raise VersioningError(f"branch {branch} is behind {remote}; run `git pull && dvc checkout`")
    run_git(["update-ref", reference, theirs, ours or "0" * 40], root)


def push(branch: str, *, remote: str, root: Path = HERE) -> None:
    """Upload a branch; doing it again changes nothing.

    Raises:
        RemoteError: if the remote cannot be reached, or refuses.
    """
    reference = f"refs/heads/{branch}"
    _ask(["push", "-q", remote, f"{reference}:{reference}"], remote, root)


def _ask(arguments: list[str], remote: str, root: Path) -> str:
    try:
        return run_git(arguments, root)
    except VersioningError as error:
        hint = "retrain.git_remote names another remote, null none"
        raise RemoteError(f"Git remote {remote}: {error}; {hint}") from error
