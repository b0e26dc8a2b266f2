"""Polygons of COCO and LabelMe: which image they lie beside shows which defect, and masks drawn of them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from onenip.data.labels import GOOD, clean_label, fold, is_label, is_normal_label
from onenip.errors import DataError, ImageError, SourceError
from onenip.images import MAX_PIXELS, read_size
from onenip.sources.items import Item
from onenip.sources.layout import mask_target

logger = logging.getLogger(__name__)

COCO, LABELME, LOOKOUT = "COCO annotations", "LabelMe polygons", "a manifest of Lookout for Vision"
_REAL_IAD = "a list of Real-IAD"
_KEYS = {
    LOOKOUT: {"source-ref"},
    COCO: {"images", "annotations"},
    LABELME: {"shapes", "imagePath"},
    _REAL_IAD: {"meta", "train", "test"},
}
REMEDIES = {
    LOOKOUT: "give it the name *.manifest, and name the file itself as the source, beside its images",
    COCO: "name the folder that holds them and their images as the source",
    LABELME: "name the folder that holds them and their images as the source",
    _REAL_IAD: "write a CSV with path, category, label and mask: each .jpg, and the .png beside it",
}
_CIRCLE_POINTS = 64

Points = tuple[tuple[float, float], ...]  # x, y in px, origin top-left


@dataclass(frozen=True)
class Marked:
    """What is marked in one image.

    Attributes:
        image: name of its file, as the annotation gives it, with `/`.
        labels: of its defects, in their order.
        polygons: outlines of those that have one.
        size: height and width that the annotation gives; None where it gives none.
    """

    image: str
    labels: tuple[str, ...]
    polygons: tuple[Points, ...]
    size: tuple[int, int] | None

    def draw(self, file: Path) -> NDArray[np.bool_]:
        """Mask of the polygons, [H, W]; of the size of the image's file where none is given."""
        try:
            height, width = self.size or read_size(file)
        except ImageError as error:
            raise SourceError(f"{file}: no mask can be drawn for it: {error.reason}") from error
        mask = Image.new("1", (width, height))
        for points in self.polygons:
            ImageDraw.Draw(mask).polygon(points, fill=1, outline=1)
        return np.asarray(mask)


def name_format(path: Path) -> str:
    """Name of the annotation format of a JSON file that is none of ours; empty if it is unknown."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            content = json.loads(file.readline() if path.suffix == ".manifest" else file.read())
    except (OSError, ValueError, RecursionError):
        return ""
    found = [
        name for name, keys in _KEYS.items() if isinstance(content, dict) and keys <= content.keys()
    ]
    return found[0] if found else ""


def read_marked(path: Path, kind: str) -> list[Marked]:
    """What a file of COCO or LabelMe marks, a row per image.

    Raises:
        SourceError: naming what in it is not understood.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        return _read_coco(content) if kind == COCO else [_read_labelme(content, path.name)]
    except (
        DataError, LookupError, TypeError, ValueError, AttributeError, OverflowError
    ) as error:  # fmt: skip
        raise SourceError(f"{path}: {kind} that are not understood: {error}") from error


def _read_coco(content: Mapping[str, Any]) -> list[Marked]:
    names = {one["id"]: str(one["name"]) for one in content.get("categories", [])}
    found: dict[Any, list[tuple[str, Points]]] = {one["id"]: [] for one in content["images"]}
    for one in content["annotations"]:
        outlines, box = one.get("segmentation") or [], one.get("bbox")
        if isinstance(outlines, dict):
            raise DataError("a segmentation in run lengths; export polygons")
        if not outlines and box:
            x, y, width, height = box
            outlines = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        if outlines and not isinstance(outlines[0], list):
            outlines = [outlines]
        label, image = names.get(one.get("category_id"), "defect"), one["image_id"]
        if image not in found:
            raise DataError(f"an annotation of the image {image!r}, which is not listed")
        found[image] += [
            (label, _check(zip(flat[::2], flat[1::2], strict=True))) for flat in outlines
        ] or [(label, ())]
    return [_make(one["file_name"], found[one["id"]], one.get("height"), one.get("width"))
            for one in content["images"]]  # fmt: skip


def _read_labelme(content: Mapping[str, Any], name: str) -> Marked:
    flags = content.get("flags") or {}
    found: list[tuple[str, Points]] = [
        (flag, ()) for flag, is_set in flags.items() if is_set and is_label(flag)
    ]
    for shape in content["shapes"]:
        points, kind = shape["points"], shape.get("shape_type", "polygon")
        if kind == "rectangle" and len(points) == 2:  # some tools write all four corners
            (x0, y0), (x1, y1) = points
            points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        elif kind == "circle":
            (x, y), edge = points
            radius = math.dist((x, y), edge)
            turns = [2 * math.pi * step / _CIRCLE_POINTS for step in range(_CIRCLE_POINTS)]
            points = [(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns]
        elif kind not in ("polygon", "rectangle"):
            raise DataError(f"a shape of the kind {kind}; draw polygons, rectangles or circles")
        found.append((str(shape["label"]), _check(points)))
    return _make(
        content["imagePath"] or name, found, content.get("imageHeight"), content.get("imageWidth")
    )


def _check(points: Any) -> Points:
    checked = tuple((float(x), float(y)) for x, y in points)
    if len(checked) < 3 or not np.isfinite(checked).all():
        raise DataError("a polygon of fewer than three points")
    return checked


def _make(image: str, found: Sequence[tuple[str, Points]], height: Any, width: Any) -> Marked:
    defects = [
        (clean_label(label), points) for label, points in found if not is_normal_label(label)
    ]
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    if size and not (min(size) > 0 and height * width <= MAX_PIXELS):
        raise DataError(f"an image of {width}x{height} px")
    labels = tuple(label for label, _ in defects)
    polygons = tuple(points for _, points in defects if points)
    return Marked(image.replace("\\", "/"), labels, polygons, size)


def apply(
    items: Sequence[Item], marked: Mapping[Path, Sequence[Marked]], origin: str
) -> list[Item]:
    """The same items, with marked images as defects of the first label, and with masks of their polygons.

    Args:
        items: images and masks.
        marked: what each annotation file marks.
        origin: the source, named in errors and log lines.

    Raises:
        SourceError: if an image that a folder calls normal is marked, or a name may be of several images.
    """
    targets, missing = {item.target for item in items}, []
    placed = {item.file: item for item in items}
    by_stem: dict[str, list[Path]] = {}
    for file in placed:
        by_stem.setdefault(fold(file.stem), []).append(file)
    found: dict[Path, tuple[Path, Marked]] = {}
    for path, one in ((path, one) for path, several in marked.items() for one in several):
        files = _find_image(one.image, path, by_stem) or _find_image(
            unquote(one.image), path, by_stem
        )
        if len(files) > 1:
            raise SourceError(f"{path}: {one.image} may be {files[0]} or {files[1]}")
        if not files:
            missing.append(one.image)
        elif one.labels:
            if files[0] in found:  # another annotation file marks it, too
                first = found[files[0]][1]
                one = replace(
                    first,
                    labels=first.labels + one.labels,
                    polygons=first.polygons + one.polygons,
                )
            found[files[0]] = path, one
    for file, (path, one) in found.items():
        item = placed[file]
        category, _, label, name = item.target.split("/")
        if label == GOOD and is_normal_label(file.parent.name):
            raise SourceError(f"{file}: lies among normal images, but {path} marks {one.labels[0]}")
        label = one.labels[0] if label == GOOD else label
        placed[file] = replace(item, target=f"{category}/test/{label}/{name}")
        mask = mask_target(category, label, Path(name).stem)
        if one.polygons and mask not in targets:
            placed[Path(mask)] = Item(mask, file, draw=one.draw)
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        logger.warning("%s: %d images are marked, but not there: %s", origin, len(missing), shown)
    drawn = sum(item.draw is not None for item in placed.values())
    logger.info(
        "%s: %d masks are drawn of polygons; images without any stay as they are", origin, drawn
    )
    return sorted(placed.values(), key=lambda item: item.target)


def _find_image(image: str, path: Path, by_stem: Mapping[str, Sequence[Path]]) -> Sequence[Path]:
    """Which files an annotation may mean: by its path, else by its name, else by that without its ending.

    Annotations are made elsewhere, so folders and formats may have changed since.

    Args:
        image: as the annotation names it, with `/`.
        path: of the annotation.
        by_stem: files by the `fold`ed stem of their names.
    """
    same = by_stem.get(fold(Path(image).stem), ())
    beside = path.parent / image
    end = fold(f"/{image.rsplit('../', 1)[-1].lstrip('./')}")
    ways = (
        [file for file in same if file == beside],
        [file for file in same if fold(f"/{file.as_posix()}").endswith(end)],
        [file for file in same if fold(file.name) == Path(end).name],
        same,
    )
    return next(filter(None, ways), ())
