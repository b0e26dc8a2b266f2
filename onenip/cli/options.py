"""Options that several commands share, so that one thing has one flag, one default and one explanation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from onenip.data.labels import clean_name

PARAMS = Path("params.yaml")
DATA = Path("data")

ParamsOption = Annotated[
    Path, typer.Option("--params", metavar="FILE", help="YAML file with all settings.")
]
DataOption = Annotated[
    Path, typer.Option("--data", metavar="FOLDER", help="Images in MVTec layout.")
]
ManifestOption = Annotated[
    Path, typer.Option("--manifest", metavar="FILE", help="CSV written by `onenip validate`.")
]
SynthesisOption = Annotated[
    Path,
    typer.Option("--synthesis", metavar="FOLDER", help="Folder written by `onenip synthesize`."),
]
ModelOption = Annotated[
    Path, typer.Option("--model", metavar="FOLDER", help="Folder of the trained model.")
]
EvaluationOption = Annotated[
    Path,
    typer.Option("--evaluation", metavar="FOLDER", help="Folder written by `onenip evaluate`."),
]
CategoryArgument = Annotated[
    str,
    typer.Argument(metavar="CATEGORY", help="Product category, such as bottle.", parser=clean_name),
]
ByOption = Annotated[
    str, typer.Option("--by", metavar="NAME", help="Who decides; kept in the audit trail.")
]
ReasonOption = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why; kept in the audit trail.")
]
HostOption = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")]
PortOption = Annotated[int, typer.Option("--port", metavar="PORT", help="Port to listen on.")]
