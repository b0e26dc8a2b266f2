"""What every file of a data folder measures: one row per file.

Walks the MVTec layout and decodes images in parallel processes; judges nothing. Each worker holds one
image at a time and returns a few numbers, so memory does not grow with the data set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import TypeVar

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from onenip.data.labels import GOOD, check_category, clean_label, find_masked_stem, fold
from onenip.data.manifest import format_range, match_masks
from onenip.errors import DataError, ImageError
from onenip.folders import walk_files
from onenip.images import (
    DARK,
    FULL_WHITE,
    IMAGE_SUFFIXES,
    SampleExtent,
    SampleRange,
    decide_range,
    explain_suffix,
    load_image,
    load_mask,
    load_mask_classes,
    measure_samples,
    read_header,
    shows_nothing,
)

MEASURED_SIDE_PX = 1024  # larger images are measured after averaging blocks down to about this
_MOST_OF_IMAGE = 0.5
CHUNK = 16  # files handed to a worker at once
_FORMATS = {
    ".png": {"PNG"},
    ".jpg": {"JPEG", "MPO"},
    ".jpeg": {"JPEG", "MPO"},
    ".jpe": {"JPEG", "MPO"},
    ".jfif": {"JPEG", "MPO"},
    ".bmp": {"BMP"},
    ".tif": {"TIFF"},
    ".tiff": {"TIFF"},
    ".webp": {"WEBP"},
}

Row = dict[str, str | int | float | None]
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Found:
    """A file of the data folder and the role that its place gives it.

    Attributes:
        path: relative to the data root, POSIX separators.
        category: first folder of the path.
        split: "train" or "test"; empty for a stray file.
        label: good, or the kind of defect that the folder of the split names.
        mask: relative path of its mask, or empty.
        stray: why the file has no role, or empty.
        sample_range: that its samples of more than 8 bits are read over.
    """

    path: str
    category: str
    split: str = ""
    label: str = ""
    mask: str = ""
    stray: str = ""
    sample_range: SampleRange | None = None


def list_files(data_dir: Path) -> list[Found]:
    """Every file under the data root with its role, sorted by path."""
    paths = sorted(path.relative_to(data_dir).as_posix() for path in walk_files(data_dir))
    masks = {p for p in paths if "/ground_truth/" in p and _suffix(p) in IMAGE_SUFFIXES}
    images = [path for path in paths if path not in masks]
    names = match_masks(images, masks)
    found = _doubt_masks([_place(path, names, data_dir) for path in images])
    used = {file.mask for file in found}
    found += [
        Found(
            path,
            path.split("/")[0],
            stray="mask of no image, or of two named alike",
        )
        for path in masks - used
    ]
    return sorted(found, key=lambda file: file.path)


def _doubt_masks(files: Sequence[Found]) -> list[Found]:
    """The same with images that are called as a mask of their neighbour named as such."""
    stems: dict[str, dict[str, str]] = {}
    for file in files:
        path = PurePosixPath(file.path)
        stems.setdefault(str(path.parent), {})[fold(path.stem)] = path.stem
    found = []
    for file in files:
        path = PurePosixPath(file.path)
        is_mask = (
            bool(file.split)
            and not file.stray
            and find_masked_stem(path.name, stems[str(path.parent)], own=path.stem) != ""
        )
        stray = (
            f"a mask by its name; it belongs in {file.category}/ground_truth/{path.parent.name}/"
        )
        found.append(Found(file.path, file.category, stray=stray) if is_mask else file)
    return found


def list_category_folders(data_dir: Path) -> list[str]:
    """Names of the folders directly under the data root, sorted, even if empty."""
    return sorted(
        path.name for path in data_dir.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def decide_ranges(
    files: Sequence[Found],
    data_dir: Path,
    *,
    declared: Callable[[str], SampleRange | None],
    workers: int,
) -> tuple[list[Found], dict[str, str]]:
    """The same files with the range of their samples, declared or decided on their category's normal ones.

    Args:
        files: what `list_files` found.
        data_dir: the data root.
        declared: gives the declared range of a category, None where it is to be decided.
        workers: processes.

    Returns:
        The files, and by category what is to be known about the range that was decided.
    """
    ranges = {file.category: declared(file.category) for file in files if not file.stray}
    normals = [
        file
        for file in files
        if file.split == "train" and file.label == GOOD and ranges[file.category] is None
    ]
    extents: dict[str, list[SampleExtent]] = {file.category: [] for file in normals}
    measured = _map(partial(_measure_extent, data_dir=data_dir), normals, workers)
    for file, extent in zip(normals, measured, strict=True):
        extents[file.category] += [extent] if extent else []
    doubts = {}
    for category, own in extents.items():
        ranges[category] = decide_range(own)
        if own and (text := _describe_range(own, ranges[category], category)):
            doubts[category] = text
    found = [replace(f, sample_range=ranges.get(f.category)) if not f.stray else f for f in files]
    return found, doubts


def _measure_extent(file: Found, *, data_dir: Path) -> SampleExtent | None:
    try:
        return measure_samples(data_dir / file.path)
    except ImageError:  # `measure_file` names it
        return None


def _describe_range(
    extents: Sequence[SampleExtent], decided: SampleRange | None, category: str
) -> str:
    """What is to be known about a range that was decided; empty where the files themselves say it."""
    low, high = min(one.low for one in extents), max(one.high for one in extents)
    remedy = f'in params.yaml declare data.sample_ranges: {{"{category}": [BLACK, WHITE]}}'
    if decided is None:
        return (
            f"its samples of {low:g} to {high:g} in training have no range of their own; {remedy}"
        )
    white = decided[1]
    dark = [one.high for one in extents if one.low < one.high < white / DARK]
    if dark and len(dark) < len(extents):
        return (
            f"{len(dark)} of {len(extents)} images in training have no value above {max(dark):g} and are "
            f"left out, as others go to {high:g} and all are read over 0 to {white:g}: are there cameras of "
            "different depths? Give each camera a category of its own, or scale its images to 8 bits"
        )
    if high - low < white / DARK:
        levels = round(256 * (high - low) / white)
        return (
            f"its samples in training are {low:g} to {high:g} and are read over 0 to {white:g}, which leaves "
            f"{levels} of 256 grey levels: {remedy}"
        )
    if white in (1, FULL_WHITE):
        return ""
    bits = int(white).bit_length()
    container = "floats" if any(one.is_float for one in extents) else "16"
    return (
        f"it looks like {bits} bits in {container}: no value in training is above {high:g}; "
        f"samples are read over 0 to {white:g}; if that is wrong, {remedy}"
    )


def measure(files: list[Found], data_dir: Path, *, workers: int, progress: bool) -> Iterator[Row]:
    """A row of measurements per file, in the files' order.

    Args:
        files: what `list_files` found.
        data_dir: the data root.
        workers: processes.
        progress: whether to show a bar.
    """
    work = partial(measure_file, data_dir=data_dir)
    rows = _map(work, files, workers)
    yield from tqdm(rows, total=len(files), desc="validate", disable=not progress, unit="image")


def measure_file(file: Found, *, data_dir: Path) -> Row:
    """Measurements of one file; an image that cannot be used has its reason as `problem`."""
    row: Row = {
        "path": file.path,
        "category": file.category,
        "split": file.split,
        "label": file.label,
        "mask": file.mask,
        "stray": file.stray or None,
        "sample_range": format_range(file.sample_range),
    }
    if file.stray:
        return row
    try:
        content = (data_dir / file.path).read_bytes()
    except OSError as error:
        return row | {"problem": f"cannot be read ({error.strerror})", "bytes": 0, "sha256": ""}
    row |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    try:
        rgb = load_image(content, sample_range=file.sample_range)
    except ImageError as error:
        return row | {"problem": error.reason}
    width, height, mode, kind = read_header(content)
    if kind not in _FORMATS.get(_suffix(file.path), {kind}):
        row["wrong_suffix"] = f"a {kind} file named {_suffix(file.path)}"
    row |= {"width": width, "height": height, "mode": mode, "short_side": min(width, height)}
    row |= _describe(rgb)
    if file.mask:
        row |= _measure_mask(data_dir / file.mask, rgb.shape[:2])
    return row


def _describe(rgb: NDArray[np.uint8]) -> Row:
    grey_image = Image.fromarray(rgb).convert("L")
    factor = max(1, round(max(grey_image.size) / MEASURED_SIDE_PX))
    grey = np.asarray(grey_image.reduce(factor), np.float32) / 255
    laplacian = (
        grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    )
    return {
        "brightness": round(float(grey.mean(dtype=np.float64)), 6),
        "contrast": 0.0 if shows_nothing(rgb) else round(float(grey.std(dtype=np.float64)), 6),
        "sharpness": round(float(laplacian.var(dtype=np.float64)) if laplacian.size else 0.0, 8),
        "phash": str(imagehash.phash(grey_image)),
    }


def _measure_mask(path: Path, size: tuple[int, ...]) -> Row:
    try:
        mask, classes = load_mask(path), load_mask_classes(path)
    except ImageError as error:
        return {"mask_problem": f"mask {path.name}: {error.reason}"}
    coverage = float(mask.mean())
    row: Row = {"mask_coverage": round(coverage, 8)}
    if classes:
        named = ", ".join(map(str, classes))
        row["mask_classes"] = f"mask {path.name} holds the classes {named}; each counts as a defect"
    if coverage > _MOST_OF_IMAGE or (mask.any() and _is_border_full(mask)):
        row["mask_doubt"] = (
            f"mask {path.name} covers {coverage:.0%} of the image and "
            f"{'all' if _is_border_full(mask) else 'not all'} of its border; is it the wrong way round?"
        )
    if mask.shape != size:
        row["mask_problem"] = (
            f"mask {path.name} is {mask.shape[1]}x{mask.shape[0]} px, the image {size[1]}x{size[0]}"
        )
    return row


def _is_border_full(mask: NDArray[np.bool_]) -> bool:
    return bool(mask[[0, -1]].all() and mask[:, [0, -1]].all())


def _place(path: str, masks: Mapping[str, str], data_dir: Path) -> Found:
    parts = path.split("/")
    category = parts[0] if len(parts) > 1 else ""
    if _suffix(path) not in IMAGE_SUFFIXES:
        return Found(path, category, stray=explain_suffix(data_dir / path))
    if len(parts) != 4 or parts[1] not in ("train", "test"):
        return Found(path, category, stray="not in <category>/{train,test}/<label>/")
    try:
        kept, label = check_category(category), clean_label(parts[2])
    except DataError as error:
        return Found(path, category, stray=str(error))
    if kept != category:
        return Found(path, category, stray=f"rename its folder as it is kept: {kept!r}")
    split, label = parts[1], label if label == GOOD else parts[2]
    return Found(path, category, split, label, masks.get(path, ""))


def _map(work: partial[_Result], files: Sequence[Found], workers: int) -> Iterator[_Result]:
    if workers <= 1 or len(files) <= CHUNK:
        yield from map(work, files)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        yield from pool.map(work, files, chunksize=CHUNK)


def _suffix(path: str) -> str:
    return Path(path).suffix.lower()
