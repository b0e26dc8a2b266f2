"""Commands about versions of the data: their history, and the difference between two."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onenip.printing import open_console, show

SHOWN_FILES = 20
_VERSION_DIGITS = 10


def log() -> None:
    """List the versions of the data, newest first: date, images per category, models trained on each.

    Reads the history of data.dvc in Git. Images are counted where DVC's cache knows that version;
    `dvc fetch --all-commits data.dvc` brings the others.
    """
    from rich import box
    from rich.table import Table

    from onenip.registry.data_history import list_history

    entries = list_history(Path())
    if not entries:
        typer.echo("No version of the data yet: run `onenip download`.")
        return
    columns = ("date", "commit", "version", "images", "models", "what")
    table = Table(*columns, box=box.SIMPLE_HEAD)
    for entry in entries:
        images = "not in the cache"
        if entry.images is not None:
            images = ", ".join(f"{name} {count}" for name, count in entry.images.items()) or "none"
        models = ", ".join(f"{model.category} {model.number}" for model in entry.models)
        date = f"{entry.date:%Y-%m-%d %H:%M}" if entry.date else "-"
        version = entry.version[:_VERSION_DIGITS]
        table.add_row(date, entry.commit[:9] or "-", version, images, models or "-", entry.subject)
    open_console().print(table)


def diff(
    old: Annotated[
        str, typer.Argument(metavar="OLD", help="Git revision, or beginning of a data version.")
    ],
    new: Annotated[
        str | None,
        typer.Argument(metavar="NEW", help="The same. [default: what data.dvc names now]"),
    ] = None,
    *,
    all_files: Annotated[
        bool, typer.Option("--all", help=f"Show every file, not only {SHOWN_FILES} of each kind.")
    ] = False,
) -> None:
    """Show which images were added, removed, changed or moved between two versions of the data."""
    from onenip.registry.data_history import compare_versions

    change = compare_versions(old, new, root=Path())
    typer.echo(f"{change.old} -> {change.new}")
    moved = tuple(f"{before} -> {after}" for before, after in change.moved)
    for sign, word, paths in (
        ("+", "added", change.added),
        ("-", "removed", change.removed),
        ("~", "changed", change.changed),
        (">", "moved", moved),
    ):
        typer.echo(f"{word}: {len(paths)}")
        shown = paths if all_files else paths[:SHOWN_FILES]
        for path in shown:
            typer.echo(show(f"  {sign} {path}"))
        if len(shown) < len(paths):
            typer.echo(f"    and {len(paths) - len(shown)} more; --all shows them")
