"""The `onenip` command: the table of all commands, and what a user reads about an error.

One file per group of commands; a command imports its work when it is called, so that help is fast and
the edge needs no torch.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
from typing import Annotated

import typer

from onenip.addresses import describe_proxy, pass_by_proxy
from onenip.errors import OneNIPError, UnreachableError
from onenip.printing import LineFormatter, show
from onenip.version import __version__

_HELP = """Find defects on all product categories with one model, trained on normal images only.

A normal day, from images to the line:

1. `onenip init plant`: make a workspace, once; all else is called in it
2. `onenip run --source ../images`: download, validate, synthesize, train, evaluate, register
3. `onenip status`: see what waits for approval
4. `onenip inspect`: look at heat maps of champion and challenger
5. `onenip approve bottle --by NAME --reason TEXT`: let it onto the line
6. `onenip serve`: answer over HTTP, or `onenip predict part.png` in the terminal

`onenip try demo` gives a first answer without training or a workspace. `onenip up` starts the servers for
what runs by itself; `onenip doctor` says what is missing.
"""

# panel -> command -> (function in this package, an example)
COMMANDS = {
    "Workspace": {
        "try": ("first_look.first_look", "onenip try ../images"),
        "init": ("workspace.init", "onenip init plant --preset cpu --inbox ../camera"),
        "doctor": ("workspace.doctor", "onenip doctor"),
        "run": ("workspace.run", "onenip run --source ../images"),
        "up": ("workspace.up", "onenip up"),
        "down": ("workspace.down", "onenip down"),
        "upgrade": ("workspace.upgrade", "onenip upgrade --dry-run"),
    },
    "Params and data": {
        "preset": ("stages.preset", "onenip preset cpu"),
        "download": ("stages.download", "onenip download --source ../images"),
        "data log": ("data.log", "onenip data log"),
        "data diff": ("data.diff", "onenip data diff HEAD~3"),
    },
    "Stages": {
        "validate": ("stages.validate", "onenip validate --data ../images --out checked"),
        "synthesize": ("stages.synthesize", "onenip synthesize"),
        "train": ("stages.train", "onenip train --params params.yaml"),
        "evaluate": ("stages.evaluate", "onenip evaluate --save-maps maps"),
        "register": ("registry.register_model", "onenip register"),
    },
    "Model": {
        "compare": (
            "model.compare",
            "onenip compare models:/onenip-bottle@champion artifacts/evaluation",
        ),
        "report": ("model.report", "onenip report --champion models:/onenip-bottle@champion"),
        "verify": (
            "provenance.verify",
            "onenip verify models:/onenip-bottle@champion --data data",
        ),
        "export": ("export.export", "onenip export artifacts/model --format onnx"),
        "import-reference": (
            "provenance.import_authors_checkpoint",
            "onenip import-reference ckpt.pth.tar --out imported --data data",
        ),
    },
    "Use": {
        "predict": ("predict.predict", "onenip predict part.png --category bottle --heatmaps out"),
        "watch-folder": ("predict.watch_folder", "onenip watch-folder /mnt/camera -c bottle"),
        "serve": (
            "serve.serve",
            "onenip serve --port 8000",
        ),
        "inspect": ("serve.inspect", "onenip inspect --folder ../images"),
    },
    "Registry": {
        "status": ("registry.status", "onenip status"),
        "approve": (
            "registry.approve",
            'onenip approve bottle --by "A. Person" --reason "read the report"',
        ),
        "reject": (
            "registry.reject",
            'onenip reject bottle --by "A. Person" --reason "misses scratches"',
        ),
        "rollback": (
            "registry.rollback",
            'onenip rollback bottle --by "A. Person" --reason "false alarms on shift 2"',
        ),
        "threshold": (
            "registry.threshold",
            'onenip threshold bottle --false-alarms 5% --by "A. Person" --reason "too many rejects"',
        ),
        "audit": ("registry.audit", "onenip audit bottle"),
    },
    "Arrivals": {
        "ingest": ("arrivals.ingest", "onenip ingest"),
        "notify": ("arrivals.notify", "onenip notify bottle cap"),
        "held": ("arrivals.held", "onenip held"),
        "release": (
            "arrivals.release",
            'onenip release bottle/0042.png --by "A. Person" --reason "a new supplier"',
        ),
    },
    "Review": {
        "feedback": (
            "review.feedback",
            'onenip feedback part.png -c bottle --label defect --kind scratch --by "A. Person"',
        ),
        "review collect": ("review.collect", "onenip review collect"),
        "review list": ("review.show", "onenip review list --category bottle"),
        "review decide": (
            "review.decide",
            'onenip review decide 0123456789abcdef01234567 --label good --by "A. Person"',
        ),
        "review undo": ("review.undo", 'onenip review undo 12 --by "A. Person"'),
        "review history": ("review.history", "onenip review history"),
        "review summary": ("review.summary", "onenip review summary --send"),
        "review apply": ("review.apply", "onenip review apply"),
    },
    "People": {
        "people add": ("people.add", 'onenip people add "A. Person" --role approver'),
        "people list": ("people.show", "onenip people list"),
        "people remove": ("people.remove", 'onenip people remove "A. Person"'),
    },
    "Operation": {
        "webhooks": ("registry.webhooks", "onenip webhooks --test"),
    },
}
_GROUPS = {
    "data": "Versions of the data, and what changed between two.",
    "people": "Who may review and decide.",
    "review": "Images that a person should look at, and what was decided about them.",
}

app = typer.Typer(
    name="onenip",
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


# at low priority, so that servers beside them keep their speed
_BATCH = {"run", "validate", "synthesize", "train", "evaluate"}

# what a user can do about a path or a disk that refuses
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "check its permissions"),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG), "choose another path"
    ),
}


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def configure(
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every step.")] = False,
    version: Annotated[  # noqa: ARG001  (its callback has done the work, without a command)
        bool,
        typer.Option(
            "--version",
            help="Print the version and stop.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Set up logging before any command runs."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # its lines hold passwords of addresses
    if verbose:
        for name in ("onenip", "flows"):
            logging.getLogger(name).setLevel(logging.DEBUG)
    else:
        for name in ("alembic", "great_expectations", "mlflow", "botocore", "matplotlib", "PIL"):
            logging.getLogger(name).setLevel(logging.WARNING)
        for name in (
            "urllib3",
            "python_multipart",
        ):  # they warn at each attempt, and at each bad form
            logging.getLogger(name).setLevel(logging.ERROR)


def _add_commands() -> None:
    groups: dict[str, typer.Typer] = {}
    for panel, commands in COMMANDS.items():
        for title, (place, example) in commands.items():
            group, _, name = title.rpartition(" ")
            if group and group not in groups:
                groups[group] = typer.Typer(help=_GROUPS[group], no_args_is_help=True)
                app.add_typer(groups[group], name=group, rich_help_panel=panel)
            module, _, function = place.partition(".")
            work = getattr(importlib.import_module(f"onenip.cli.{module}"), function)
            into = groups[group] if group else app
            into.command(
                name, rich_help_panel=None if group else panel, epilog=f"Example: `{example}`"
            )(work)


_add_commands()


def main() -> None:
    """Run the command line; an error that the user can act on is one line and exit status 2."""
    for key, value in {
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",  # its import would raise the level again
        "DVC_NO_ANALYTICS": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }.items():
        os.environ.setdefault(key, value)
    pass_by_proxy()
    try:
        if next((word for word in sys.argv[1:] if not word.startswith("-")), "") in _BATCH:
            from onenip.stages.process import begin_stage

            begin_stage()  # before torch is imported
        app()
    except OneNIPError as error:
        proxy = describe_proxy() if isinstance(error, UnreachableError) else ""
        typer.echo(f"onenip: {show(str(error) + proxy)}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        where = show(f"{error.filename}: ") if error.filename else ""
        remedy = _REMEDIES[error.errno]
        typer.echo(f"onenip: {where}{error.strerror}; {remedy} and run it again", err=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        name = error.name or ""
        if name.partition(".")[0] == "onenip":
            raise
        typer.echo(f"onenip: needs {name}: pip install 'onenip[full]'", err=True)
        sys.exit(2)
