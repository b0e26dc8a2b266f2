"""The command line of a flow: one line and exit status 2 for an error that a user can act on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import httpx
import typer

from onenip.addresses import describe_proxy, pass_by_proxy
from onenip.errors import OneNIPError, UnreachableError

_ANSWER_SECONDS = 10.0


def run_command(command: Callable[..., None], arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and do as it says.

    Args:
        command: a function whose parameters are the options.
        arguments: the command line; None is that of this process.
    """
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(command)
    pass_by_proxy()
    try:
        app(arguments)
    except OneNIPError as error:
        proxy = describe_proxy() if isinstance(error, UnreachableError) else ""
        typer.echo(f"onenip: {error}{proxy}", err=True)
        sys.exit(2)


def require_server() -> None:
    """Make sure that Prefect's server answers, where PREFECT_API_URL names one.

    Raises:
        UnreachableError: if it does not.
    """
    address = os.environ.get("PREFECT_API_URL")
    if not address:
        return
    try:
        httpx.get(f"{address.rstrip('/')}/health", timeout=_ANSWER_SECONDS).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise UnreachableError(
            f"PREFECT_API_URL: no Prefect server answers at {address}; `onenip up` starts one here, "
            "and without the variable none is needed"
        ) from error
