"""Commands about the origin of a model: verify, import-reference."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from onenip.printing import open_console

_MARKS = {True: "agrees", False: "DIFFERS", None: "unchecked"}


def import_authors_checkpoint(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="FILE", help="The authors' checkpoint, or safetensors.")
    ],
    *,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="For the model.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FOLDER",
            help="MVTec layout, whose normal images calibrate the model.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="SEED", help="Seed of the synthetic anomalies.")] = 0,
) -> None:
    """Convert a checkpoint of the authors' implementation into a model folder.

    Every key must be accounted for, and nothing in the file is executed. With `--data`, prompts,
    thresholds and the fusion constant come from its normal training images; the model then runs
    through evaluate, predict and register like one trained here.
    """
    from onenip.training.authors import import_authors_checkpoint as read_authors_checkpoint

    detector = read_authors_checkpoint(checkpoint, data_dir=data, seed=seed)
    detector.save(out)
    known = ", ".join(detector.categories) or "none yet: give --data to calibrate some"
    typer.echo(f"{out}: input {detector.input_size}, categories: {known}")


def verify(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Folder of the model, or models:/onenip-CATEGORY@champion."
        ),
    ],
    *,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="FOLDER", help="Data that it was calibrated on."),
    ] = None,
    synthesis: Annotated[
        Path | None,
        typer.Option(
            "--synthesis", metavar="FOLDER", help="Folder that `onenip synthesize` wrote then."
        ),
    ] = None,
    digest: Annotated[
        str | None, typer.Option("--digest", metavar="DIGEST", help="Digest that was approved.")
    ] = None,
) -> None:
    """Recompute what a model states about itself, and list what differs.

    Digest, thresholds and the scores of its stored prompts need the model alone; with `--data` the scores,
    scales and pixel thresholds of its calibration images are recomputed, with `--synthesis` the fusion
    constant, too. Of a registered version the digest is compared with the approved one, and the registry
    names commit and approver. Exit status 1 if anything differs.
    """
    from rich.table import Table

    from onenip.training.verification import verify_model

    registered = {}
    with ExitStack() as stack:
        if model.startswith("models:/"):
            from onenip.registry.versions import find_addressed
            from onenip.registry.weights import fetched_weights

            version = find_addressed(model)
            folder = stack.enter_context(fetched_weights(version.weights_uri))
            digest = digest or version.approved_digest or version.digest
            registered = {
                "data_version": version.data_version,
                "git_commit": version.git_commit,
                "approver": version.approver,
            }
        else:
            folder = Path(model)
        findings = verify_model(
            folder,
            data_dir=data,
            synthesis_dir=synthesis,
            expected_digest=digest,
            registered=registered,
        )
    table = Table("fact", "", "detail")
    for finding in findings:
        table.add_row(finding.fact, _MARKS[finding.agrees], finding.detail)
    open_console().print(table)
    if any(finding.agrees is False for finding in findings):
        raise typer.Exit(1)
