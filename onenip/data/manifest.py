"""The manifest: one row per image, written by `validate`, read by every later stage.

Knows the layout on disk and how normal images are assigned to subsets; knows neither torch nor how
images are judged.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onenip.data.labels import GOOD, find_masked_stem, fold, is_normal_label
from onenip.errors import DataError
from onenip.images import SampleRange, find_images, hash_file, load_image

Subset = Literal["fit", "calibration", "holdout", "defect", "test"]
DATA_DIR = Path("data")  # below the checkout, as in dvc.yaml; versioned by data.dvc
_DEPTH = 4  # <category>/<split>/<label>/<file>
_DATED = re.compile(r"(\d{4}-\d\d-\d\d)-[0-9a-f]{24}\.")  # name of a test image that people added
MANIFEST_COLUMNS = (
    "path",  # relative to the data root, POSIX separators
    "category",
    "split",  # train | test
    "label",  # good, or the kind of defect
    "subset",  # fit | calibration | holdout | defect | test
    "mask",  # relative to the data root, empty if there is none
    "width",  # px, as stored
    "height",
    "mode",  # PIL's mode of the file
    "sample_range",  # black and white of its category's samples of more than 8 bits, empty if unknown
    "bytes",
    "sha256",
    "phash",  # 16 hex digits, perceptual hash
    "brightness",  # mean grey value, 0..1
    "contrast",  # standard deviation of grey values, 0..1
    "sharpness",  # variance of the Laplacian of grey values
    "mask_coverage",  # fraction of defective pixels, empty without a mask
    "status",  # ok | quarantined
    "reason",  # why it is quarantined
)


@dataclass(frozen=True)
class Sample:
    """One usable image of the data set.

    Attributes:
        path: the image file.
        name: its path relative to the data root, POSIX separators; unique, and stable across machines.
        category: the product category.
        label: "good", or the kind of defect.
        subset: what it is used for. Normal training images are "fit", "calibration" or "holdout" by the
            hash of their content; images under `test/` are "test", confirmed defects under `train/`, which
            all have a mask, are "defect".
        mask: the defect mask's file, for defective images that have one.
        sha256: 64 hex digits of the image file's bytes.
        sample_range: that its category's samples of more than 8 bits are read over.
    """

    path: Path
    name: str
    category: str
    label: str
    subset: Subset
    mask: Path | None
    sha256: str
    sample_range: SampleRange | None = None

    def load_image(self) -> NDArray[np.uint8]:
        """Its pixels, [H, W, 3] uint8, as `onenip.images.load_image` reads them.

        Raises:
            ImageError: if it cannot be used.
        """
        return load_image(self.path, sample_range=self.sample_range)

    @property
    def is_defective(self) -> bool:
        """Whether the image's label says that it shows a defect."""
        return self.label != GOOD


def dated_name(day: date, sha256: str, suffix: str) -> str:
    """File name of a defect that people add on a day; see `read_added`."""
    return f"{day.isoformat()}-{sha256[:24]}{suffix}"


def read_added(name: str) -> str:
    """Day on which people added a defect, as `2026-11-26`; empty for an image that was there."""
    found = _DATED.match(PurePosixPath(name).name)
    return found[1] if found else ""


def load_manifest(path: Path, data_dir: Path) -> list[Sample]:
    """Usable images of a manifest, in the manifest's order (sorted by name).

    Args:
        path: the CSV that `onenip validate` wrote.
        data_dir: the folder that the manifest's paths are relative to.

    Raises:
        DataError: if the manifest is missing or has other columns.
    """
    return [_to_sample(row, data_dir) for row in _read_rows(path) if row["status"] == "ok"]


def find_quarantined(path: Path) -> set[str]:
    """sha256 of the files that a manifest leaves out, 64 hex digits each.

    Raises:
        DataError: as for `load_manifest`.
    """
    return {row["sha256"] for row in _read_rows(path) if row["status"] != "ok"}


def read_ranges(path: Path) -> dict[str, SampleRange | None]:
    """Ranges of samples that the latest validation decided on, by category; empty without a manifest."""
    try:
        samples = load_manifest(path, DATA_DIR)
    except DataError:  # validation comes later, or wrote it for another version
        return {}
    return {sample.category: sample.sample_range for sample in samples}


def assign_subset(sha256: str, *, calibration_fraction: float, holdout_fraction: float) -> Subset:
    """Subset of a normal training image, as a function of its content alone.

    A growing data set therefore never moves an image from one subset to another.

    Args:
        sha256: hex digits of the hash of the image file's bytes.
        calibration_fraction: share of images kept for prompts' thresholds and score scales.
        holdout_fraction: share of images that nothing is fitted to, for false-alarm rates.
    """
    position = int(sha256[:13], 16) / 16**13
    if position < calibration_fraction:
        return "calibration"
    if position < calibration_fraction + holdout_fraction:
        return "holdout"
    return "fit"


def scan_layout(
    data_dir: Path, *, calibration_fraction: float, holdout_fraction: float
) -> list[Sample]:
    """Samples of a folder in MVTec layout that is known to be sound, sorted by name.

    The pipeline reads the manifest instead, which says what is sound.

    Raises:
        DataError: if the folder holds no `<category>/train/good` or `<category>/test/<label>`.
    """
    samples = []
    images = {path.relative_to(data_dir).as_posix(): path for path in find_images(data_dir)[0]}
    masks = match_masks(images, [name for name in images if "/ground_truth/" in name])
    for one in list_placed(data_dir):
        mask = images[masks[one.name]] if one.label != GOOD and one.name in masks else None
        if one.split == "train" and one.label != GOOD and mask is None:
            continue  # validation says why
        digest = hash_file(one.path)
        subset: Subset = "test" if one.split == "test" else "defect"
        if one.split == "train" and one.label == GOOD:
            subset = assign_subset(
                digest,
                calibration_fraction=calibration_fraction,
                holdout_fraction=holdout_fraction,
            )
        samples.append(Sample(one.path, one.name, one.category, one.label, subset, mask, digest))
    if not samples:
        raise DataError(f"{data_dir}: no <category>/train/{GOOD} images", path=data_dir)
    return samples


@dataclass(frozen=True)
class PlacedImage:
    """An image file of the data folder that is no mask, and what its place says; `label` is cleaned."""

    path: Path
    name: str
    category: str
    split: str
    label: str


def list_placed(data_dir: Path) -> list[PlacedImage]:
    """Images in `<category>/{train,test}/<label>/` below a folder, sorted; none where it is missing."""
    found = []
    for path in find_images(data_dir)[0] if data_dir.is_dir() else ():
        name = path.relative_to(data_dir).as_posix()
        parts = name.split("/")
        if len(parts) == _DEPTH and parts[1] in ("train", "test"):
            label = GOOD if is_normal_label(parts[2]) else parts[2]
            found.append(PlacedImage(path, name, parts[0], parts[1], label))
    return found


def match_masks(images: Iterable[str], masks: Iterable[str]) -> dict[str, str]:
    """Mask of each image that has one, both as paths in MVTec layout relative to the data root.

    Of two images of one name, in `test` and in `train`, the mask is that of the test image; of two in one
    folder, as `1.jpg` and `1.png`, it is nobody's.
    """
    by_place: dict[tuple[str, str], dict[str, str | None]] = {}
    for path in sorted(images, key=lambda path: "/test/" in path):
        parts = path.split("/")
        is_defect = len(parts) == _DEPTH and parts[1] == "train" and not is_normal_label(parts[2])
        if is_defect or (len(parts) == _DEPTH and parts[1] == "test"):
            named, stem = by_place.setdefault((parts[0], parts[2]), {}), PurePosixPath(path).stem
            first = named.get(stem, "")
            is_twin = first is None or first.split("/")[1:2] == [parts[1]]
            named[stem] = None if is_twin else path
    folded = {place: {fold(stem): stem for stem in named} for place, named in by_place.items()}
    found: dict[str, str] = {}
    for mask in sorted(masks, key=lambda path: ("_mask." not in path, path)):  # our own name first
        parts = mask.split("/")
        if len(parts) == _DEPTH:
            place = parts[0], parts[2]
            stem = find_masked_stem(parts[3], folded.get(place, {}))
            image = by_place[place][stem] if stem else None
            if image is not None:
                found.setdefault(image, mask)
    return found


def hash_samples(samples: Iterable[Sample]) -> str:
    """Digest of images with their masks and all that is known of them, 64 hex digits.

    Raises:
        DataError: if a mask cannot be read.
    """
    digest = hashlib.sha256()
    for one in sorted(samples, key=lambda sample: sample.name):
        try:
            mask = hash_file(one.mask) if one.mask else ""
        except OSError as error:
            raise DataError(f"{one.mask}: {error.strerror}", path=one.mask) from error
        facts = (one.name, one.category, one.label, one.subset, one.sha256, mask, one.sample_range)
        digest.update(f"{facts}\n".encode())
    return digest.hexdigest()


def list_categories(samples: Iterable[Sample]) -> list[str]:
    """Names of the categories, sorted."""
    return sorted({sample.category for sample in samples})


def select(
    samples: Sequence[Sample], *, category: str | None = None, subset: Subset | None = None
) -> list[Sample]:
    """Samples of one category and one subset, in order; None means any."""
    return [
        sample
        for sample in samples
        if category in (None, sample.category) and subset in (None, sample.subset)
    ]


def _read_rows(path: Path) -> Iterator[dict[str, str]]:
    if not path.is_file():
        raise DataError(f"{path}: no manifest; run `onenip validate` first", path=path)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != MANIFEST_COLUMNS:
            raise DataError(f"{path}: not a manifest of this version of onenip", path=path)
        yield from reader


def _to_sample(row: dict[str, str], data_dir: Path) -> Sample:
    return Sample(
        path=data_dir / row["path"],
        name=row["path"],
        category=row["category"],
        label=row["label"],
        subset=row["subset"],  # type: ignore[arg-type]  # checked when the manifest was written
        mask=data_dir / row["mask"] if row["mask"] else None,
        sha256=row["sha256"],
        sample_range=parse_range(row["sample_range"]),
    )


def format_range(sample_range: SampleRange | None) -> str:
    """Black and white as a cell of the manifest, such as `0 4095`; empty for None."""
    return " ".join(f"{value:.17g}" for value in sample_range or ())


def parse_range(text: str) -> SampleRange | None:
    """What `format_range` wrote."""
    if not text:
        return None
    black, white = text.split()
    return float(black), float(white)
