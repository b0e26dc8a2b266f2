"""Commands about registry."""

from __future__ import annotations

import typer


def register(_app: typer.Typer) -> None:
    """Add this group's commands to the application."""
