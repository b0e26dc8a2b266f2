"""Commands that run until they are stopped: `serve`, an HTTP server, and `inspect`, a page for people."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from onenip.cli.options import HostOption, PortOption
from onenip.data.outputs import OUTPUTS

KeepChoice = Literal["all", "doubts"]
HeaderOption = Annotated[
    str,
    typer.Option(
        "--person-header",
        metavar="NAME",
        help="Header in which a reverse proxy on this machine says who logged in. [default: none]",
    ),
]
ProxyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--trusted-proxy",
        metavar="ADDRESS",
        help="Another address that it may come from; repeatable.",
    ),
]


def serve(
    *,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="FOLDER",
            help="Serve this model. [default: every category's champion]",
        ),
    ] = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    refresh_seconds: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=1, help="Time between two requests to the registry."),
    ] = 20.0,
    max_mb: Annotated[int, typer.Option(metavar="MB", min=1, help="Largest request.")] = 32,
    max_waiting: Annotated[
        int, typer.Option(metavar="COUNT", min=1, help="Requests that may wait; more get 503.")
    ] = 64,
    batch_size: Annotated[
        int,
        typer.Option(
            metavar="COUNT",
            min=1,
            help="Waiting images scored in one pass. A few pay on several cores or a GPU (ONENIP_DEVICE); "
            "scores may then differ from those of `onenip evaluate` in the last bits.",
        ),
    ] = 1,
    recent: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Keep images, maps and answers in this folder or s3://bucket/prefix, for "
            "`onenip inspect`, feedback and review. [default: none]",
        ),
    ] = None,
    keep: Annotated[
        KeepChoice,
        typer.Option(
            metavar="all|doubts",
            help="Images to keep: all, or alarms, near misses and a sample of the others.",
        ),
    ] = "all",
    keep_sample: Annotated[
        float,
        typer.Option(metavar="SHARE", min=0, max=1, help="Of the others, with --keep doubts."),
    ] = 0.05,
    keep_days: Annotated[
        float, typer.Option(metavar="DAYS", min=0.1, max=92, help="That answers are kept at most.")
    ] = 30.0,
    keep_gb: Annotated[
        float, typer.Option(metavar="GB", min=0.01, help="Room for them; the oldest go first.")
    ] = 5.0,
    person_header: HeaderOption = "",
    trusted_proxy: ProxyOption = None,
) -> None:
    """Serve predictions over HTTP, for all categories in one process.

    Follows the champion aliases in MLflow and switches without dropping a request; if the registry is
    down, the last champions go on. `/docs` describes the interface, `/ready` and `/metrics` watch it.
    Set ONENIP_API_KEY to ask clients for it as X-API-Key. Decisions and feedback ask for a person of
    `onenip people`, once there is one.

    A client asks: `curl -F file=@part.png -F category=bottle localhost:8000/predict/file`
    """
    from onenip.review.answers import Keeping
    from onenip.serving.champions import Follower
    from onenip.serving.connections import run_server
    from onenip.serving.web import ServeSettings, build_app

    champions = Follower() if model is None else Follower.of_folder(model)
    settings = ServeSettings(
        api_key=os.environ.get("ONENIP_API_KEY", ""),
        max_bytes=max_mb << 20,
        max_waiting=max_waiting,
        batch_size=batch_size,
        refresh_seconds=refresh_seconds if model is None else 0.0,
        person_header=person_header,
        proxies=frozenset({"127.0.0.1", "::1", *(trusted_proxy or ())}),
        keeping=None
        if recent is None
        else Keeping(recent, keep, sample=keep_sample, days=keep_days, gigabytes=keep_gb),
    )
    run_server(build_app(champions, settings), host=host, port=port)


def inspect(
    *,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            metavar="FOLDER",
            help="Show this model. [default: champions, else artifacts/model]",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", metavar="FOLDER", help="Images to browse. [default: data/]"),
    ] = None,
    recent: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Answers that `serve --recent` keeps.")
    ] = str(OUTPUTS.recent),
    port: PortOption = 8501,
    host: HostOption = "127.0.0.1",
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            metavar="NAME",
            help="Name under which browsers may ask for the page, such as a proxy's; repeatable. "
            "[default: the names of this machine]",
        ),
    ] = None,
    person_header: HeaderOption = "",
    trusted_proxy: ProxyOption = None,
) -> None:
    """Show pages: overview, review queue, images with heat maps, decisions, data, an operator's screen.

    Looking is open. Who reviews or decides signs in: with a name of `onenip people`, through the company's
    login (Streamlit's `[auth]` in `.streamlit/secrets.toml`), or through a reverse proxy that says who it is.
    """
    import socket

    from onenip.pages.server import serve_page

    os.environ.update(
        ONENIP_INSPECT_MODEL=str(model or ""),
        ONENIP_INSPECT_FOLDER=str(folder or "data"),
        ONENIP_INSPECT_RECENT=recent,
        ONENIP_INSPECT_PERSON_HEADER=person_header,
        ONENIP_INSPECT_PROXIES=",".join(["127.0.0.1", "::1", *(trusted_proxy or ())]),
        ONENIP_INSPECT_IS_PRIVATE="yes"
        if host in ("127.0.0.1", "localhost") and not (allowed_host or person_header)
        else "",
    )
    names = {"127.0.0.1", "localhost", host, *(allowed_host or ())}
    if host not in ("127.0.0.1", "localhost"):
        names |= {socket.gethostname(), socket.getfqdn()}
    typer.echo(f"http://{host}:{port}")
    serve_page(host=host, port=port, allowed_hosts=sorted(names))
