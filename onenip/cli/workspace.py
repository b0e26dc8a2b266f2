"""The workspace: make one, examine it, run all of it, start its servers, follow the installed version."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from onenip.cli.options import PARAMS
from onenip.printing import show
from onenip.version import __version__


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Empty folder, or one to be made.")],
    *,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET", help="Preset of params.yaml, see `onenip preset`. [default: cpu]"
        ),
    ] = None,
    inbox: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Folder or s3://bucket/prefix where new images arrive."
        ),
    ] = None,
    remote: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="DVC's remote: a folder, or s3://bucket/prefix."),
    ] = None,
) -> None:
    """Make a workspace for one plant: a Git repository with params, stages, DVC and a README.

    On a terminal it asks for what the options leave out. Nothing of onenip itself is copied: code is what
    is installed.
    """
    from onenip.workspace.files import init

    if sys.stdin.isatty():
        preset = preset or typer.prompt("Preset", default="cpu")
        inbox = inbox if inbox is not None else _ask("Inbox")
        remote = remote if remote is not None else _ask("DVC's remote")
    init(folder, preset=preset or "cpu", inbox=inbox or None, remote=remote or None)
    typer.echo(f"{folder} is a workspace, preset {preset or 'cpu'}")
    typer.echo(f"next  cd {folder}; onenip run --source ../images  (or --source demo)")


def doctor() -> None:
    """Say what is missing on this machine and in this workspace, each with its remedy in a line.

    Looks at versions, Git, disk, memory, GPU, params, DVC's remote, inbox, webhook, servers and clock;
    changes nothing. Exit status 1 if the pipeline cannot work as it is.
    """
    from onenip.workspace.doctor import examine

    findings = []
    for finding in examine():
        findings.append(finding)
        mark = "!!" if finding.is_needed else "- " if finding.remedy else "ok"
        typer.echo(show(f"{mark} {finding.subject:10} {finding.text}"))
        if finding.remedy:
            typer.echo(show(f"   {'':10} -> {finding.remedy}"))
    if any(finding.is_needed for finding in findings):
        raise typer.Exit(1)


def upgrade(
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the difference, and change nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Bring this workspace's files to the installed version: show the difference, then write and commit it.

    Settings keep their values, and your changes to dvc.yaml and .gitignore stay. Where they meet those of the
    new version, both are left between markers, to be resolved and committed by you (exit status 1). Then
    `onenip run` makes anew what the update changes, and nothing else.
    """
    from onenip.workspace.files import plan_upgrade, upgrade

    update = plan_upgrade()
    if not update.texts:
        typer.echo("this workspace follows the installed version already")
        return
    typer.echo(show(update.difference))
    for stage, reason in update.reasons.items():
        typer.echo(show(f"{stage} runs anew: {reason}"))
    for path in update.conflicts:
        typer.echo(f"{path}: your changes meet those of the new version, see the markers")
    if dry_run:
        return
    if not yes:
        typer.confirm("Write this?" if update.conflicts else "Write and commit this?", abort=True)
    upgrade(update)
    if update.conflicts:
        names = " ".join(map(str, update.conflicts))
        typer.echo(f"written, not committed: edit {names} where <<<<<<< stands, then")
        typer.echo(f'  git commit -am "Upgrade to onenip {__version__}"; onenip run')
        raise typer.Exit(1)
    typer.echo("done; next: onenip run")


def run(
    *,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="What to download: demo, a folder, an archive, s3://bucket/prefix, or a data set's "
            "name (see `onenip download --help`); repeatable. Without it, data/ is used as it is.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="PRESET", help="Write params.yaml from this preset first."),
    ] = None,
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="You accept the data set's licence.")
    ] = False,
    endpoint_url: Annotated[
        str | None, typer.Option(metavar="URL", help="S3 endpoint, if it is not AWS.")
    ] = None,
    no_sign_request: Annotated[
        bool, typer.Option("--no-sign-request", help="Read a public bucket without credentials.")
    ] = False,
) -> None:
    """Run everything: download, validate, synthesize, train, evaluate, register.

    A line for each step says how long it took; `onenip --verbose run` shows every line of Prefect, DVC and
    stages. What is up to date is skipped, and a killed run goes on where it was. Ends with missed defects
    and false alarms per category, and where to look next. Needs no server; with PREFECT_API_URL and
    MLFLOW_TRACKING_URI it works with those.
    """
    from onenip.model.network import check_architecture
    from onenip.params import Params
    from onenip.params.presets import apply_preset
    from onenip.workspace.files import require_current

    if preset is not None:
        apply_preset(preset, PARAMS)
    check_architecture(Params.load().model)
    require_current()
    is_verbose = logging.getLogger("onenip").level == logging.DEBUG
    if not is_verbose:  # read when Prefect is imported: its lines go to its server alone
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    from flows.command import require_server
    from flows.pipeline import Download, print_summary, run_pipeline
    from flows.progress import showing_steps

    require_server()
    request = Download(tuple(source or ()), accept_license, endpoint_url, not no_sign_request)
    with nullcontext() if is_verbose else showing_steps():
        run_pipeline(request)
    print_summary()
    if not is_verbose:
        logging.getLogger("prefect").setLevel(logging.WARNING)  # its server says that it stops


def up() -> None:
    """Start Prefect, MLflow, workers and S3 on this machine, as far as they do not run.

    Prints their addresses, and declares what runs by itself: watching the inbox, retraining, approval, drift.
    """
    from onenip.params import Params

    Params.load()  # a mistake there is an error before anything starts
    from flows.stack import up

    up()


def down() -> None:
    """Stop everything that `onenip up` started, workers first, and wait until it is gone."""
    from flows.stack import down

    down()


def _ask(what: str) -> str:
    text: str = typer.prompt(
        f"{what}, a folder or s3://bucket/prefix (Enter: none)", default="", show_default=False
    )
    return text
