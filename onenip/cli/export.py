"""`onenip export`: a model as a file for other runtimes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from onenip.cli.predict import TileNormals, TileOverlap, calibrate_tiles
from onenip.data.labels import clean_name
from onenip.data.outputs import OUTPUTS

if TYPE_CHECKING:
    from onenip.detector.detector import Detector


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Folder of a model, or models:/onenip-CATEGORY@champion."
        ),
    ] = str(OUTPUTS.model),
    *,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The file; its suffix follows the format.")
    ] = OUTPUTS.export / "onenip.onnx",
    format_: Annotated[
        Literal["onnx", "openvino"],
        typer.Option("--format", help="Format of the file."),
    ] = "onnx",
    category: Annotated[
        list[str] | None,
        typer.Option(
            "--category",
            "-c",
            metavar="CATEGORY",
            help="Only this one; repeatable. [default: all]",
            parser=clean_name,
        ),
    ] = None,
    int8: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write INT8 instead (OpenVINO), calibrated on train/good and measured on test/ of "
            "this folder in MVTec layout.",
        ),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS", min=32, help="Write a file that looks at tiles of this side."
        ),
    ] = None,
    overlap: TileOverlap = 0.25,
    tile_normals: TileNormals = None,
) -> None:
    """Write a model as one file that runs without torch, with its thresholds beside it.

    `onenip predict --model FILE` runs it; `pip install 'onenip[edge]'` is enough for that.
    """
    from onenip.detector.detector import Detector
    from onenip.errors import DataError
    from onenip.inference.export import export_detector, export_tiled
    from onenip.serving.files import load_model

    loaded = load_model(model, None)
    if not isinstance(loaded, Detector):
        raise DataError(f"{model}: is an exported file already")
    names = tuple(category or loaded.categories)
    if tile is not None:
        if int8 is not None:
            raise DataError("--int8 and --tile do not go together")
        tiled = calibrate_tiles(
            loaded, tile, overlap, names[0] if len(names) == 1 else None, tile_normals
        )
        typer.echo(str(export_tiled(tiled, out, format=format_)))
        return
    if int8 is None:
        typer.echo(str(export_detector(loaded, out, format=format_, categories=names)))
        return
    if format_ != "openvino":
        raise DataError("--int8 writes OpenVINO files: add --format openvino")
    _export_int8(loaded, out, names, int8)


def _export_int8(detector: Detector, out: Path, names: tuple[str, ...], data_dir: Path) -> None:
    from onenip.data.manifest import scan_layout, select
    from onenip.inference.int8 import export_int8

    samples = scan_layout(data_dir, calibration_fraction=0.0, holdout_fraction=0.0)
    path, loss = export_int8(
        detector,
        out,
        normals={n: [s.path for s in select(samples, category=n, subset="fit")] for n in names},
        tests={
            n: [(s.path, s.is_defective) for s in select(samples, category=n, subset="test")]
            for n in names
        },
    )
    typer.echo(str(path))
    typer.echo(json.dumps(asdict(loss)))
    if loss.verdicts_changed:
        typer.echo(
            f"INT8 changed {loss.verdicts_changed} of {loss.images} verdicts: FP32 is the safe choice",
            err=True,
        )
