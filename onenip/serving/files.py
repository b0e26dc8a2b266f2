"""Predictions of files: find the images, load the model, one answer per image as JSON.

Yields an answer per image as it comes; a file that is no image is an answer too, with its reason.
Imports neither torch nor MLflow unless the model needs it, so that an edge runs the same command.
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from PIL import Image

from onenip.detector.prediction import Prediction
from onenip.errors import DataError, ImageError, OneNIPError, UnknownCategoryError
from onenip.folders import is_junk
from onenip.images import IMAGE_SUFFIXES, SampleRange, explain_suffix, find_images, load_image

EXPORT_SUFFIXES = frozenset({".onnx", ".xml"})

_MAGIC = frozenset("*?[")
_SHOWN = 5  # names of files that are left out

log = logging.getLogger(__name__)


class Predictor(Protocol):
    """A detector, one that tiles, or an exported file."""

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categories, sorted."""
        ...

    def sample_range(self, category: str | None) -> SampleRange | None:
        """Black and white of samples of more than 8 bits."""
        ...

    def predict(self, images: Sequence[Path], *, category: str | None = None) -> list[Prediction]:
        """Scores, maps, regions and verdicts; None infers each image's category."""
        ...


@dataclass(frozen=True)
class Answer:
    """The answer to one file.

    Attributes:
        name: the file, as the user named it or found in a folder.
        path: where it lies on this machine.
        prediction: of the model; None if the file is no usable image.
        error: why there is no prediction; empty if there is one.
        place: relative path of what is written about it, without a suffix; of no other file.
        sample_range: that the model read its samples over, where they have more than 8 bits.
    """

    name: str
    path: Path
    prediction: Prediction | None
    error: str = ""
    place: Path = Path("image")
    sample_range: SampleRange | None = None

    def to_json(self) -> dict[str, Any]:
        """The answer as plain values; boxes in px at the image's own size, origin top-left."""
        if self.prediction is None:
            return {"image": self.name, "error": self.error}
        return {"image": self.name, **self.prediction.to_dict()}


def list_images(names: Sequence[str], *, scratch: Path) -> list[tuple[str, Path]]:
    """Image files at paths, in folders, of globs and of `s3://bucket/prefix`, each with its name.

    Args:
        names: as the user gave them.
        scratch: folder that objects of S3 are fetched into.

    Raises:
        DataError: if a folder, glob or prefix holds no image.
        SourceError: if S3 refuses.
    """
    files: list[tuple[str, Path]] = []
    for name in names:
        if name.startswith("s3://"):
            found = _fetch_objects(name, scratch / str(len(files)))
        elif Path(name).is_dir():
            images, others = find_images(Path(name))
            if others:
                log.warning("%s: left out: %s", name, _list(others))
            found = [(str(path), path) for path in images]
        elif _MAGIC & set(name) and not Path(name).exists():
            matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207  # absolute ones too
            found = [(match, Path(match)) for match in matches if Path(match).is_file()]
        else:
            found = [(name, Path(name))]
        if not found:
            raise DataError(f"{name}: no images there", path=name)
        files += found
    return files


def predict_files(
    model: Predictor, files: Sequence[tuple[str, Path]], *, category: str | None
) -> Iterator[Answer]:
    """An answer per file, in order, each as soon as it is there.

    Raises:
        DataError: if the model does not know the category.
    """
    if category is not None and category not in model.categories:
        raise UnknownCategoryError(category, model.categories)
    for (name, path), place in zip(files, place_outputs(files), strict=True):
        try:
            prediction = model.predict([path], category=category)[0]
        except ImageError as error:
            yield Answer(name, path, None, error.reason, place)
        else:
            sample_range = model.sample_range(category)
            yield Answer(name, path, prediction, place=place, sample_range=sample_range)


def load_model(model: str, category: str | None) -> Predictor:
    """The model at an address.

    Args:
        model: a model folder, an exported file (.onnx, or .xml of OpenVINO),
            `models:/onenip-C@ALIAS`, `models:/onenip-C/NUMBER`, or "" for the champion of
            `category`, else its provisional model.
        category: None without a model means the champions of all categories.

    Raises:
        DataError: if the address is none of a model.
        CheckpointError: if the folder or file holds no usable model.
        RegistryError: if there is no such version, it was not approved, or the registry cannot be reached.
    """
    if Path(model).suffix in EXPORT_SUFFIXES and not model.startswith("models:/"):
        from onenip.inference.edge import EdgeDetector

        return EdgeDetector.load(model)
    try:
        if model and not model.startswith("models:/"):
            from onenip.detector.detector import Detector

            return Detector.load(model)
        return _load_registered(model, category)
    except ModuleNotFoundError as error:
        raise OneNIPError(
            f"{model or 'the registry'}: {error.name} is not installed: pip install 'onenip[full]', or "
            f"run an exported file: --model FILE.onnx"
        ) from error


def save_heatmap(answer: Answer, folder: Path) -> Path:
    """Write the image beside its heat map, the defect outlined, as PNG; gives its path."""
    from onenip.detector.heatmaps import draw_picture

    assert answer.prediction is not None
    picture = draw_picture(
        load_image(answer.path, sample_range=answer.sample_range),
        answer.prediction.map,
        None,
        pixel_threshold=answer.prediction.pixel_threshold,
    )
    path = _make_place(answer, folder, ".png")
    Image.fromarray(picture).save(path)
    return path


def save_map(answer: Answer, folder: Path) -> Path:
    """Write the float32 map at the image's own size as TIFF; gives its path."""
    assert answer.prediction is not None
    path = _make_place(answer, folder, ".tiff")
    Image.fromarray(answer.prediction.map).save(path)
    return path


def place_outputs(files: Sequence[tuple[str, Path]]) -> list[Path]:
    """Relative paths, without a suffix, of what is written about files: named as these, below one folder.

    Where two files would share one, such as `a/x.png` and `../a/x.png`, the later one gets a number.

    Args:
        files: as `list_images` gives them.
    """
    taken: dict[Path, Path] = {}
    places = []
    for name, path in files:
        named = Path(name.removeprefix("s3://"))
        parts = [part for part in named.parts if part not in (named.anchor, "..", ".")]
        own = place = Path(*parts) if parts else Path("image")
        origin, number = path.absolute(), 1
        while taken.setdefault(place, origin) != origin:
            number += 1
            place = own.with_name(f"{own.stem}-{number}{own.suffix}")
        places.append(place)
    return places


def _make_place(answer: Answer, folder: Path, suffix: str) -> Path:
    path = folder / answer.place.with_name(f"{answer.place.name}{suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _load_registered(model: str, category: str | None) -> Predictor:
    from onenip.registry.champions import Champions, load_all_serving, load_serving
    from onenip.registry.versions import find_addressed

    if model:
        return Champions().load(find_addressed(model))
    return load_all_serving() if category is None else load_serving(category)[0]


def _list(paths: Sequence[Path]) -> str:
    shown = [f"{path.name} ({explain_suffix(path)})" for path in paths[:_SHOWN]]
    return ", ".join(shown) + f" and {len(paths) - _SHOWN} more" * (len(paths) > _SHOWN)


def _fetch_objects(address: str, folder: Path) -> list[tuple[str, Path]]:
    """Images at an S3 address, fetched into `folder`, each named by its own address."""
    try:
        from onenip.sources.s3 import Bucket
    except ModuleNotFoundError as error:
        raise OneNIPError(f"{address}: needs {error.name}: pip install 'onenip[full]'") from error
    bucket = Bucket(address)
    objects = [o for o in bucket.list_objects() if not is_junk(PurePosixPath(o.key).parts)]
    chosen = [o for o in objects if Path(o.key).suffix.lower() in IMAGE_SUFFIXES]
    if others := [Path(o.key) for o in objects if o not in chosen and not o.key.endswith("/")]:
        log.warning("%s: left out: %s", address, _list(others))
    folder.mkdir(parents=True)
    wanted = {folder / f"{i}{Path(o.key).suffix}": o for i, o in enumerate(chosen)}
    bucket.fetch(wanted)
    return [(f"s3://{bucket.name}/{item.key}", path) for path, item in wanted.items()]
