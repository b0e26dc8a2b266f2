"""Files of a workspace: made by `init`, brought to the installed version by `upgrade`."""

from __future__ import annotations

import difflib
import io
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

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
_HEADER = "# Written by `onenip upgrade`: code and libraries that each stage depends on. Keep it in Git.\n"
_DVC_CONFIG = "[core]\n    analytics = false\n    check_update = false\n    autostage = false\n"
# file of the workspace: file of the template; `upgrade` keeps these in step with the installed version
_FOLLOWING = {
    "dvc.yaml": "dvc.yaml",
    ".gitignore": "gitignore",
    ".dvc/plots/onenip_curves.json": "plots/onenip_curves.json",
    ".dvc/plots/onenip_histogram.json": "plots/onenip_histogram.json",
}


class WorkspaceError(OneNIPError):
    """A folder is no workspace, is one already, or was made by another version."""


@dataclass(frozen=True)
class Update:
    """What `upgrade` would change.

    Attributes:
        difference: of all files, as `diff -u` prints it.
        reasons: why a stage will run anew, by stage.
        texts: new content of each file that changes.
    """

    difference: str
    reasons: dict[str, str]
    texts: dict[Path, str]


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
        WorkspaceError: if something is in the folder.
        ParamsError: if there is no such preset, or the inbox cannot be one.
        VersioningError: if Git or DVC refuses.
    """
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
    known = read_yaml(root / CODE)
    if known != describe_code():
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

    Params keep their values: new keys get their defaults, retired ones go.

    Raises:
        WorkspaceError: if the folder is no workspace.
        ParamsError: if params.yaml holds what this version refuses; the message names the key.
    """
    if not is_workspace(root):
        raise WorkspaceError(
            f"{root.resolve()}: no {CODE}: no workspace of `onenip init`; a checkout follows its own code"
        )
    wanted = {Path(name): _read_template(file) for name, file in _FOLLOWING.items()}
    wanted[CODE] = _render_code()
    params = Params.load(root / DEFAULT_PATH)
    if _list_keys(read_yaml(root / DEFAULT_PATH)) != _list_keys(params.dump()):
        wanted[DEFAULT_PATH] = render(params)
    texts, lines = {}, list[str]()
    for path, text in wanted.items():
        present = (root / path).read_text(encoding="utf-8") if (root / path).is_file() else ""
        if present != text:
            texts[path] = text
            lines += difflib.unified_diff(
                present.splitlines(), text.splitlines(), str(path), str(path), lineterm=""
            )
    return Update("\n".join(lines), explain(read_yaml(root / CODE)), texts)


def upgrade(update: Update, root: Path = Path()) -> None:
    """Write the files of an update, and commit them.

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
        git.commit(names, message=f"Upgrade to onenip {__version__}", root=root)


def _read_template(name: str) -> str:
    return (resources.files("onenip.workspace") / "template" / name).read_text(encoding="utf-8")


def _render_code() -> str:
    stream = io.StringIO()
    YAML().dump(describe_code(), stream)
    return _HEADER + stream.getvalue()


def _render_remote(remote: str | None) -> str:
    """Lines that end the first section of DVC's configuration."""
    if remote is None:
        return ""
    return f"    remote = plant\n['remote \"plant\"']\n    url = {_make_absolute(remote)}\n"


def _make_absolute(address: str | None) -> str | None:
    """A folder by its whole path, since a relative one means another folder to DVC, or elsewhere."""
    return address if address is None or "://" in address else str(Path(address).resolve())


def _list_keys(values: dict[str, Any]) -> set[tuple[str, str]]:
    """Keys of params: of sections, and of those in a section."""
    return {
        (section, key)
        for section, inner in values.items()
        for key in (inner if isinstance(inner, dict) else [""])
    }
