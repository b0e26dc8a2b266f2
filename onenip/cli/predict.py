"""`onenip predict`: a line of JSON for each image. Needs no torch for exported files."""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from onenip.data.labels import clean_name

if TYPE_CHECKING:
    from onenip.inference.tiling import TiledDetector
    from onenip.serving.files import Predictor

FormChoice = Literal["json", "csv"]

_COLUMNS = ("image", "category", "verdict", "score", "threshold", "regions", "seconds", "error")

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
            parser=clean_name,
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
    form: Annotated[
        FormChoice,
        typer.Option("--format", metavar="json|csv", help="Of the lines that are printed."),
    ] = "json",
    tile: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS", min=32, help="Look at tiles of this side, not at the whole image."
        ),
    ] = None,
    overlap: TileOverlap = 0.25,
    tile_normals: TileNormals = None,
) -> None:
    """Print verdict, score and defect regions of each image, one line of JSON each, or a table as CSV.

    A file that is no image gets a line with `error`; the others go on, and the exit status is 1.
    """
    from tqdm import tqdm

    from onenip.errors import OneNIPError
    from onenip.serving.files import list_images, load_model, predict_files, save_heatmap, save_map

    failed = False
    write_line = write_csv() if form == "csv" else write_json
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
            write_line(answer.to_json())
            if answer.prediction is None:
                failed = True
                continue
            if heatmaps is not None:
                save_heatmap(answer, heatmaps)
            if maps is not None:
                save_map(answer, maps)
    if failed:
        raise typer.Exit(1)


def write_json(answer: Mapping[str, Any]) -> None:
    """Print an answer as a line of JSON."""
    typer.echo(json.dumps(answer, allow_nan=False))


def write_csv() -> Callable[[Mapping[str, Any]], None]:
    """Print the header of a table now, and answers as its rows then; `regions` is their number."""
    writer = csv.DictWriter(sys.stdout, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()

    def write(answer: Mapping[str, Any]) -> None:
        writer.writerow({**answer, "regions": len(answer.get("regions", ()))})
        sys.stdout.flush()

    return write


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


def watch_folder(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder that cameras drop images into.")
    ],
    *,
    category: Annotated[
        str | None,
        typer.Option(
            "--category",
            "-c",
            metavar="CATEGORY",
            help="Category of all images. [default: their folder's name, else inferred]",
            parser=clean_name,
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FOLDER", help="Ask this model. [default: the champions]"),
    ] = None,
    existing: Annotated[
        bool, typer.Option("--existing", help="Judge what lies there already first.")
    ] = False,
    recent: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Keep images, maps and answers there, as `serve --recent` does. [default: none]",
        ),
    ] = None,
    form: Annotated[
        FormChoice,
        typer.Option("--format", metavar="json|csv", help="Of the lines that are printed."),
    ] = "json",
) -> None:
    """Judge each image that appears in a folder, until it is stopped; a line for each.

    The champions are followed as `onenip serve` does. Images stay where they are.
    """
    import threading

    from onenip.errors import DataError
    from onenip.review.answers import Keeping
    from onenip.serving.champions import Follower
    from onenip.serving.watching import judge_folder, require_category

    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder", path=folder)
    champions = Follower() if model is None else Follower.of_folder(model)
    champions.refresh()
    require_category(champions, category)
    champions.start(20.0)
    write_line = write_csv() if form == "csv" else write_json
    for answer in judge_folder(
        folder,
        champions,
        category=category,
        has_existing=existing,
        keeping=None if recent is None else Keeping(recent),
        stop=threading.Event(),
    ):
        write_line(answer)
