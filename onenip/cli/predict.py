"""`onenip predict`: a line of JSON for each image. Needs no torch for exported files."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from onenip.inference.tiling import TiledDetector
    from onenip.serving.files import Predictor

TileOverlap = Annotated[
    float,
    typer.Option(
        metavar="FRACTION", min=0.0, max=0.75, help="Overlap of neighbouring tiles, of their side."
    ),
]
TileNormals = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Normal images that the prompts and thresholds of tiles come from."
    ),
]


def predict(
    images: Annotated[
        list[str],
        typer.Argument(metavar="PATH", help="Images, folders, globs or s3://bucket/prefix."),
    ],
    *,
    category: Annotated[
        str | None,
        typer.Option(
            "--category",
            "-c",
            metavar="CATEGORY",
            help="Category of all images. [default: inferred]",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Folder, models:/onenip-CATEGORY@champion, or exported file (.onnx, .xml). "
            "[default: the category's champion; without a category, those of all]",
        ),
    ] = "",
    heatmaps: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write a picture of each image and its heat map there."
        ),
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write each map there: float32 TIFF at the image's size."
        ),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS", min=32, help="Look at tiles of this side, not at the whole image."
        ),
    ] = None,
    overlap: TileOverlap = 0.25,
    tile_normals: TileNormals = None,
) -> None:
    """Print verdict, score and defect regions of each image, one line of JSON each.

    A file that is no image gets a line with `error`; the others go on, and the exit status is 1.
    """
    from tqdm import tqdm

    from onenip.errors import OneNIPError
    from onenip.serving.files import list_images, load_model, predict_files, save_heatmap, save_map

    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        files = list_images(images, scratch=Path(scratch) / "objects")
        try:
            loaded = load_model(model, category)
        except OneNIPError:
            for name in (name for name, path in files if not path.exists()):
                typer.echo(f"onenip: {name}: no such file", err=True)
            raise
        if tile is not None:
            loaded = calibrate_tiles(loaded, tile, overlap, category, tile_normals)
        answers = predict_files(loaded, files, category=category)
        shows_bar = sys.stderr.isatty()
        for answer in tqdm(answers, total=len(files), unit="image", disable=not shows_bar):
            typer.echo(json.dumps(answer.to_json(), allow_nan=False))
            if answer.prediction is None:
                failed = True
                continue
            if heatmaps is not None:
                save_heatmap(answer, heatmaps)
            if maps is not None:
                save_map(answer, maps)
    if failed:
        raise typer.Exit(1)


def calibrate_tiles(
    loaded: Predictor, side: int, overlap: float, category: str | None, normals: Path | None
) -> TiledDetector:
    """A detector that looks at tiles, with prompts and thresholds of normal tiles.

    Raises:
        DataError: if the model is an exported file, or the category or the normal images are missing.
    """
    from onenip.detector.detector import Detector
    from onenip.errors import DataError
    from onenip.inference.tiling import TiledDetector
    from onenip.serving.files import list_images

    if not isinstance(loaded, Detector):
        raise DataError("an exported file is tiled when it is written: `onenip export --tile`")
    if normals is None or category is None:
        raise DataError(
            "--tile needs --tile-normals FOLDER and --category: thresholds of whole images do not "
            "hold for tiles"
        )
    files = [path for _, path in list_images([str(normals)], scratch=normals)]
    return TiledDetector.from_normals(loaded, category, files, tile_px=side, overlap=overlap)
