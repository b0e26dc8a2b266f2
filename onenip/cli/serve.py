"""Commands that answer for as long as they run: `serve`, for machines, and `inspect`, for people."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from onenip.data.outputs import OUTPUTS


def register(app: typer.Typer) -> None:
    """Add this group's commands to the application."""
    app.command()(serve)
    app.command()(inspect)


def serve(
    *,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="Serve this folder. [default: every category's champion]"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    refresh_seconds: Annotated[
        float, typer.Option(min=1, help="Time between two looks into the registry.")
    ] = 20.0,
    max_mb: Annotated[int, typer.Option(min=1, help="Largest request in MB.")] = 32,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; more get 503.")
    ] = 64,
    batch_size: Annotated[
        int,
        typer.Option(
            min=1,
            help="Waiting images judged in one pass. A few pay on several cores or a GPU (ONENIP_DEVICE); "
            "scores may then differ from those of `onenip evaluate` in the last bits.",
        ),
    ] = 1,
    recent: Annotated[
        Path | None,
        typer.Option(
            help="Keep the latest 200 images and answers there, for `onenip inspect`. [default: none]"
        ),
    ] = None,
) -> None:
    """Answer images over HTTP, for all categories in one process.

    Follows the champion aliases in MLflow and switches without dropping a request; if the registry is
    down, the last champions go on. `/docs` describes the interface, `/ready` and `/metrics` watch it.
    Set ONENIP_API_KEY to ask clients for it as X-API-Key.

    Example: `curl -F file=@part.png -F category=bottle localhost:8000/predict/file`
    """
    import uvicorn

    from onenip.serving.champions import Champions
    from onenip.serving.web import ServeSettings, build_app

    champions = Champions() if model is None else Champions.of_folder(model)
    settings = ServeSettings(
        api_key=os.environ.get("ONENIP_API_KEY", ""),
        max_bytes=max_mb << 20,
        max_waiting=max_waiting,
        batch_size=batch_size,
        refresh_seconds=refresh_seconds if model is None else 0.0,
        recent=recent,
    )
    uvicorn.run(build_app(champions, settings), host=host, port=port, log_level="warning")


def inspect(
    *,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", help="Look with this folder. [default: champions, else artifacts/model]"
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Images to browse. [default: data/]")
    ] = None,
    recent: Annotated[
        Path, typer.Option(help="Recent predictions to look at, that `serve --recent` keeps.")
    ] = OUTPUTS.recent,
    port: Annotated[int, typer.Option(help="Port of the page.")] = 8501,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Open a page to look at images: heat maps, regions, score beside the normals, approve or reject."""
    import subprocess
    import sys

    import onenip.serving.page

    page = Path(onenip.serving.page.__file__).with_name("page.py")
    env = os.environ | {
        "ONENIP_INSPECT_MODEL": str(model or ""),
        "ONENIP_INSPECT_FOLDER": str(folder or "data"),
        "ONENIP_INSPECT_RECENT": str(recent),
    }
    options = {
        "server.port": port,
        "server.address": host,
        "server.headless": "true",
        "browser.gatherUsageStats": "false",
        "server.fileWatcherType": "none",
        "server.maxUploadSize": 64,  # MB
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "theme.base": "light",
        "theme.primaryColor": "#1d4ed8",  # red and green are the verdicts'
    }
    flags = [f"--{key}={value}" for key, value in options.items()]
    typer.echo(f"http://{host}:{port}")
    code = subprocess.call([sys.executable, "-m", "streamlit", "run", str(page), *flags], env=env)
    raise typer.Exit(code)
