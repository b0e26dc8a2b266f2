"""The `onenip` command: one file per group of commands, each importing its work when it is called."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
from typing import Annotated

import typer

from onenip.errors import OneNIPError
from onenip.version import __version__

app = typer.Typer(
    name="onenip",
    help="Find defects on all product categories with one model, trained on normal images only.\n\n"
    "The stages, in order: download, validate, synthesize, train, evaluate, register. "
    "`dvc repro` runs validate to evaluate and skips what is up to date; "
    "`python -m flows.pipeline --source demo` runs everything.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

GROUPS = (
    "stages",
    "data",
    "model",
    "predict",
    "export",
    "provenance",
    "registry",
    "arrivals",
    "serve",
)


# what a user can do about a disk that refuses
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "give yourself the right to it"),
}


@app.callback()
def configure(
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every step.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    """Set up logging before any command runs."""
    if version:
        typer.echo(__version__)
        raise typer.Exit
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(levelname)s %(name)s: %(message)s",
    )
    if not verbose:
        for name in (
            "alembic",
            "great_expectations",
            "httpx",
            "mlflow",
            "botocore",
            "matplotlib",
            "PIL",
        ):
            logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns at each attempt


for _group in GROUPS:
    importlib.import_module(f"onenip.cli.{_group}").register(app)


def main() -> None:
    """Run the command line; an error that the user can act on is one line and exit status 2."""
    for key, value in {
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "1",
        "GX_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }.items():
        os.environ.setdefault(key, value)
    try:
        app()
    except OneNIPError as error:
        typer.echo(f"onenip: {error}", err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        where = f"{error.filename}: " if error.filename else ""
        remedy = _REMEDIES[error.errno]
        typer.echo(f"onenip: {where}{error.strerror}; {remedy} and run it again", err=True)
        sys.exit(2)
    except ModuleNotFoundError as error:
        name = error.name or ""
        if name.partition(".")[0] == "onenip":
            raise
        typer.echo(f"onenip: needs {name}: pip install 'onenip[full]'", err=True)
        sys.exit(2)
