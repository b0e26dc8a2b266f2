"""Commands about where a model comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_MARKS = {True: "agrees", False: "DIFFERS", None: "unchecked"}


def register(app: typer.Typer) -> None:
    """Add this group's commands to the application."""
    app.command("import-reference")(import_reference)
    app.command()(verify)


def import_reference(
    checkpoint: Annotated[Path, typer.Argument(help="The authors' checkpoint, or safetensors.")],
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder for the model.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="MVTec-layout folder whose normals calibrate the model."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Root of the synthetic anomalies.")] = 0,
) -> None:
    """Turn a checkpoint of the authors' implementation into a model of ours.

    Every key must be accounted for, and nothing in the file is executed. With `--data`, prompts,
    thresholds and the fusion constant come from its normal training images; the model then runs
    through evaluate, predict and register like one trained here.
    """
    from onenip.reference import import_reference as read_reference

    detector = read_reference(checkpoint, data_dir=data, seed=seed)
    detector.save(out)
    known = ", ".join(detector.categories) or "none yet: give --data to calibrate some"
    typer.echo(f"{out}: input {detector.input_size}, categories: {known}")


def verify(
    model: Annotated[Path, typer.Argument(help="Folder of the model.")],
    *,
    data: Annotated[
        Path | None, typer.Option("--data", help="The data that it was calibrated on.")
    ] = None,
    digest: Annotated[
        str | None, typer.Option("--digest", help="The digest that was approved.")
    ] = None,
) -> None:
    """Recompute what a model says of itself, and say what does not agree.

    Exit status 1 if anything differs.
    """
    from rich.console import Console
    from rich.table import Table

    from onenip.verification import verify_model

    findings = verify_model(model, data_dir=data, expected_digest=digest)
    table = Table("fact", "", "detail")
    for finding in findings:
        table.add_row(finding.fact, _MARKS[finding.agrees], finding.detail)
    Console().print(table)
    if any(finding.agrees is False for finding in findings):
        raise typer.Exit(1)
