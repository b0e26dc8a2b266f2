"""Files of a workspace: made by `init`, brought to the installed version by `upgrade`."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import LiteralScalarString

from onenip.addresses import hide_secrets, holds_secret
from onenip.data import dvc, git
from onenip.data.checkout import STATE_DIR, hold_checkout
from onenip.errors import OneNIPError
from onenip.folders import write_whole
from onenip.params import DEFAULT_PATH, Params
from onenip.params.presets import load_preset, render
from onenip.params.reading import read_yaml
from onenip.version import __version__
from onenip.workspace.code import STAGES, describe_code

CODE = Path("onenip.yaml")

_DRAFT = ".onenip-init"
_HEADER = (
    "# Written by `onenip upgrade`: code and libraries that each stage depends on, and files as they were\n"
    "# shipped, from which it finds your changes to them. Keep it in Git.\n"
)
_DVC_CONFIG = """\
[plots]
    html_template = plots/page.html
[core]
    analytics = false
    check_update = false
    autostage = false
"""
# file of the workspace: file of the template; `upgrade` keeps these in step with the installed version
_FOLLOWING = {
    "dvc.yaml": "dvc.yaml",
    ".gitignore": "gitignore",
    ".dvc/plots/onenip_curves.json": "plots/onenip_curves.json",
    ".dvc/plots/onenip_histogram.json": "plots/onenip_histogram.json",
    ".dvc/plots/page.html": "plots/page.html",
}


class _Code(BaseModel):
    """`onenip.yaml`, stages aside."""

    version: str
    files: dict[str, str] | None = None


class _Stage(BaseModel):
    """A stage in `onenip.yaml`."""

    code: str | None = None
    libraries: dict[str, str] | None = None


class WorkspaceError(OneNIPError):
    """A folder is no workspace, is one already, or was made by another version."""


@dataclass(frozen=True)
class Update:
    """What `upgrade` would change.

    Attributes:
        difference: of all files, as `diff -u` prints it.
        reasons: why a stage will run anew, by stage.
        texts: new content of each file that changes, with a person's changes to it.
        conflicts: files in which those meet changes of the new version; both stand there, between markers.
    """

    difference: str
    reasons: dict[str, str]
    texts: dict[Path, str]
    conflicts: list[Path]


def init(
    folder: Path, *, preset: str = "cpu", inbox: str | None = None, remote: str | None = None
) -> None:
    """Make a workspace: Git repository, DVC set-up, params, graph of stages, README, first commit.

    Nothing is in the folder until all of it is ready.

    Args:
        folder: empty, or not there yet.
        preset: of the params.
        inbox: folder or s3://bucket/prefix where new images arrive.
        remote: DVC's remote, such as s3://bucket/prefix or a folder.

    Raises:
        WorkspaceError: if something is in the folder, or an address holds a password.
        ParamsError: if there is no such preset, or the inbox cannot be one.
        VersioningError: if Git or DVC refuses.
    """
    for address in filter(None, (inbox, remote)):
        if holds_secret(address):
            raise WorkspaceError(
                f"{hide_secrets(address)}: it would be committed with its password; leave that to the "
                "environment, or to `dvc remote modify --local`"
            )
    place = _make_absolute(remote) or ""
    if not place.isprintable() or '"' in place:
        raise WorkspaceError(f"{place!r}: no name for DVC's remote")
    draft = folder / _DRAFT
    if folder.exists() and any(path != draft for path in folder.iterdir()):
        hint = "; it is one already" if is_workspace(folder) else ""
        raise WorkspaceError(f"{folder}: not empty: a workspace gets a folder of its own{hint}")
    values = load_preset(preset).dump()
    values["retrain"]["inbox"] = _make_absolute(inbox)
    texts = {
        **{name: _read_template(file) for name, file in _FOLLOWING.items()},
        "README.md": _read_template("README.md").format(
            name=folder.resolve().name, preset=preset, version=__version__
        ),
        "params.yaml": render(Params.parse(values)),
        "retrain.yaml": _read_template("retrain.yaml"),
        "onenip.yaml": _render_code(),
        "textures/.gitkeep": "",
        ".dvc/config": _DVC_CONFIG + _render_remote(remote),
    }
    (draft / STATE_DIR).mkdir(parents=True, exist_ok=True, mode=0o700)
    git.run(["init", "-q", "-b", "main"], draft)
    dvc.init(draft)
    for name, text in texts.items():
        with write_whole(draft / name) as file:
            file.write_text(text, encoding="utf-8")
    git.commit(
        [*texts, ".dvc/.gitignore", ".dvcignore"],
        message=f"Start with onenip {__version__}, preset {preset}",
        root=draft,
    )
    for path in sorted(draft.iterdir()):
        os.replace(path, folder / path.name)
    draft.rmdir()


def is_workspace(root: Path = Path()) -> bool:
    """Whether a folder was made by `init`; a checkout of the product itself follows its own code."""
    return (root / CODE).is_file()


def require_current(root: Path = Path()) -> None:
    """Make sure that the stages of a workspace are those of the installed version.

    Raises:
        WorkspaceError: if `onenip upgrade` was not called since another version or library was installed.
    """
    if not is_workspace(root):
        return
    known = _read_code(root / CODE)
    if any(known.get(key) != value for key, value in describe_code().items()):
        why = "; ".join(f"{stage}: {reason}" for stage, reason in explain(known).items())
        made = known.get("version")
        raise WorkspaceError(
            f"this workspace follows onenip {made}, installed is {__version__}"
            f"{f' ({why})' if why else ''}: `onenip upgrade` first"
        )


def explain(known: dict[str, Any]) -> dict[str, str]:
    """Why stages run anew, by stage: their code changed, or libraries.

    Args:
        known: content of the workspace's `onenip.yaml`.
    """
    reasons = {}
    for stage in STAGES:
        old, new = known.get(stage) or {}, describe_code()[stage]
        before, now = old.get("libraries") or {}, new["libraries"]
        parts = ["its code changed"] if old.get("code") != new["code"] else []
        parts += [
            f"{name} {before.get(name, 'absent')} -> {now.get(name, 'absent')}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        ]
        if parts:
            reasons[stage] = ", ".join(parts)
    return reasons


def plan_upgrade(root: Path = Path()) -> Update:
    """What the installed version has otherwise than the files of a workspace.

    A person's changes to a file stay: those of the new version are merged into it. Params keep their values
    and comments: new keys get their defaults, retired ones go.

    Raises:
        WorkspaceError: if the folder is no workspace.
        ParamsError: if params.yaml holds what this version refuses; the message names the key.
    """
    if not is_workspace(root):
        raise WorkspaceError(
            f"{root.resolve()}: no {CODE}: no workspace of `onenip init`; a checkout follows its own code"
        )
    known = _read_code(root / CODE)
    titles = ("yours", f"onenip {known.get('version')}", f"onenip {__version__}")
    wanted, conflicts = {CODE: _render_code()}, list[Path]()
    for name, file in _FOLLOWING.items():
        path, new = Path(name), _read_template(file)
        made_from = (known.get("files") or {}).get(name)
        if made_from is None or not (root / path).is_file():
            wanted[path] = new
            continue
        present = _read_text(root / path)
        wanted[path], is_clean = git.merge_texts(present, made_from, new, titles=titles)
        conflicts += [] if is_clean else [path]
    wanted[DEFAULT_PATH] = _update_params(root / DEFAULT_PATH)
    texts, lines = {}, list[str]()
    for path, text in wanted.items():
        present = _read_text(root / path) if (root / path).is_file() else ""
        if present != text:
            texts[path] = text
            before, after = (one.partition("\nfiles:")[0].splitlines() for one in (present, text))
            lines += difflib.unified_diff(before, after, str(path), str(path), lineterm="")
    return Update("\n".join(lines), explain(known), texts, conflicts)


def upgrade(update: Update, root: Path = Path()) -> None:
    """Write the files of an update, and commit them, unless a person has to resolve conflicts first.

    Raises:
        WorkspaceError: if one of them has changes that are in no commit.
        BusyError: if another command is at work in the workspace.
        VersioningError: if Git refuses.
    """
    names = [str(path) for path in update.texts]
    with hold_checkout("upgrade", root=root):
        changed = git.try_run(["status", "--porcelain", "--untracked-files=no", "--", *names], root)
        if changed:
            lost = ", ".join(line.split()[-1] for line in changed.splitlines())
            raise WorkspaceError(f"{lost}: changed since the last commit; commit it first")
        for path, text in update.texts.items():
            with write_whole(root / path) as draft:
                draft.write_text(text, encoding="utf-8")
        if not update.conflicts:
            git.commit(names, message=f"Upgrade to onenip {__version__}", root=root)


def _read_code(path: Path) -> dict[str, Any]:
    """Content of `onenip.yaml`.

    Raises:
        ParamsError: if it is no YAML; WorkspaceError, if it holds what `upgrade` never wrote.
    """
    known = read_yaml(path)
    try:
        _Code.model_validate(known)
        for stage in STAGES:
            _Stage.model_validate(known.get(stage) or {})
    except ValidationError as error:
        raise WorkspaceError(
            f"{path}: damaged; `git checkout {path.name}` brings it back"
        ) from error
    return known


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise WorkspaceError(f"{path}: no text in UTF-8; `git checkout {path.name}`") from error


def _read_template(name: str) -> str:
    return (resources.files("onenip.workspace") / "template" / name).read_text(encoding="utf-8")


def _render_code() -> str:
    files = {name: LiteralScalarString(_read_template(file)) for name, file in _FOLLOWING.items()}
    stream = io.StringIO()
    YAML().dump({**describe_code(), "files": files}, stream)
    return _HEADER + stream.getvalue()


def _render_remote(remote: str | None) -> str:
    """Lines that end the first section of DVC's configuration."""
    if remote is None:
        return ""
    # quoted, since DVC reads # as the start of a comment and a comma as the next of several
    return f'    remote = plant\n[\'remote "plant"\']\n    url = "{_make_absolute(remote)}"\n'


def _make_absolute(address: str | None) -> str | None:
    """A folder by its whole path, since a relative one means another folder to DVC, or elsewhere."""
    return address if address is None or "://" in address else str(Path(address).resolve())


def _update_params(path: Path) -> str:
    """Text of params.yaml with the keys of this version: lines are added and removed, all others stay.

    A file that has not a line for each key, as `onenip preset` writes it, is written anew.
    """
    params, present = Params.load(path), path.read_text(encoding="utf-8")
    anew = render(params)
    if _list_keys(read_yaml(path)) == _list_keys(params.dump()):
        return present
    here, there = _find_lines(present), _find_lines(anew)
    added: dict[int, list[str]] = {-1: []}  # by the line that they come after
    at = start = -1
    for key, line in there.items():
        at = here.get(key, at)
        if key not in here:
            added.setdefault(at, []).extend(anew.splitlines()[start + 1 : line + 1])
        start = line
    gone = {here[key] for key in here.keys() - there.keys()}
    lines = added[-1]
    for number, text in enumerate(present.splitlines()):
        lines += ([] if number in gone else [text]) + added.get(number, [])
    text = "\n".join([*lines, ""])
    with contextlib.suppress(YAMLError):
        if YAML(typ="safe", pure=True).load(text) == params.dump():
            return text
    return anew


def _find_lines(text: str) -> dict[tuple[str, str], int]:
    """Number of the line of each section, and of each key in one."""
    found, section = {}, ""
    for number, line in enumerate(text.splitlines()):
        if match := re.match(r"(  )?(\w+):", line):
            section = section if match[1] else match[2]
            found[section, match[2] if match[1] else ""] = number
    return found


def _list_keys(values: dict[str, Any]) -> set[tuple[str, str]]:
    """Keys of params: of sections, and of those in a section."""
    return {
        (section, key)
        for section, inner in values.items()
        for key in (inner if isinstance(inner, dict) else [""])
    }
