"""Image sets described by a table: CSV or JSON lines with path, category, label and mask.

A column `split` (train or test) is optional: without it, good images are for training and others for
testing. Tables from Excel are read as it writes them, the list of VisA with its own names of columns, and
manifests of Lookout for Vision, whose images lie in the folder of the manifest.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import posixpath
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import ImageColor

from onenip.data.labels import (
    DEFECT_WORDS,
    GOOD,
    NORMAL_WORDS,
    check_category,
    clean_label,
    fold,
    is_label,
    is_normal_label,
)
from onenip.errors import DataError, ImageError, SourceError
from onenip.images import load_image
from onenip.sources.items import Fetched, Item, Origin, Workspace, check_relative
from onenip.sources.layout import check_clashes, mask_target

VISA_TABLE = "/split_csv/1cls.csv"
logger = logging.getLogger(__name__)

MANIFEST_SUFFIXES = frozenset({".csv", ".jsonl", ".manifest"})
_REQUIRED = ("path", "category", "label")
_COLUMNS = (*_REQUIRED, "mask", "split")
_BACKGROUND = "background"  # colour of what is no defect in a mask, where a manifest names it
_ALIASES = {"image": "path", "file": "path", "filename": "path", "object": "category"}
_DELIMITERS = ",;\t"
# Excel writes UTF-8, UTF-16 with its mark, or what Windows calls its own in western and other countries
_ENCODINGS = ("cp1252", "cp932", "gb18030", "cp949", "cp1251", "cp1250")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class ManifestSource:
    """A table of images; its paths are relative to the folder that it lies in, and stay below it."""

    name: str
    path: Path

    def fetch(self, workspace: Workspace) -> Fetched:  # noqa: ARG002  # files are read where they are
        """Place the images as their rows say."""
        rows = _leave_out_repeated(_read_rows(self.path), self.path)
        basenames = Counter(_place(row, PurePosixPath(row["path"]).name) for _, row in rows)
        items = []
        for number, row in rows:
            path = PurePosixPath(row["path"])
            target = _place(row, path.name)
            if basenames[target] > 1:  # the same file name in several folders
                target = _place(row, "-".join(part for part in path.parts if part != "/"))
            items.append(Item(target, self._find(row["path"], number)))
            if row["mask"]:
                place = mask_target(row["category"], row["label"], Path(target).stem)
                mask = self._find(row["mask"], number)
                if row["background"]:
                    draw = partial(_differ, background=row["background"])
                    items.append(Item(place, mask, draw=draw))
                else:
                    items.append(Item(place, mask, is_mask=mask.suffix.lower() != ".png"))
        check_clashes([item.target for item in items], self.name)
        return Fetched(items, Origin(self.name, str(self.path)))

    def _find(self, name: str, number: int) -> Path:
        where = f"{self.path}: row {number}"
        relative = check_relative(name, where)
        path = self.path.parent / relative
        if not _is_there(path):
            # as a file system would find it that forgets case or Unicode's form
            path = self.path.parent
            for part in relative.parts:
                alike = [one for one in _list_folder(path) if fold(one.name) == fold(part)]
                path = alike[0] if len(alike) == 1 else path / part
        if not _is_there(path):
            raise SourceError(f"{where}: no such file {name}")
        return path


def convert_visa(folder: Path) -> list[Item]:
    """VisA by its own split for one-class training, `split_csv/1cls.csv`; masks count from 1."""
    tables = sorted(folder.rglob("1cls.csv"))
    if len(tables) != 1:
        raise SourceError("visa: it lacks split_csv/1cls.csv")
    root = tables[0].parent.parent
    items = []
    with tables[0].open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                category, image = row["object"], row["image"]
                label = GOOD if row["label"] == "normal" else "bad"
                target = f"{category}/{row['split']}/{label}/{Path(image).name}"
                mask = row["mask"]
            except KeyError as error:
                raise SourceError(f"visa: split_csv/1cls.csv lacks the column {error}") from error
            items.append(Item(target, _member(root, image)))
            if mask and label != GOOD:
                place = mask_target(category, label, Path(image).stem)
                items.append(Item(place, _member(root, mask), is_mask=True))
    return items


def _member(root: Path, name: str) -> Path:
    path = root / check_relative(name, "visa")
    if not _is_there(path):
        raise SourceError(f"visa: split_csv/1cls.csv names {name}, which is not there")
    return path


def _is_there(path: Path) -> bool:
    """Whether there is such a file; none has a name that no file system takes."""
    try:
        return path.is_file()
    except OSError:
        return False


def _list_folder(path: Path) -> list[Path]:
    try:
        return list(path.iterdir())
    except OSError:
        return []


def _leave_out_repeated(
    rows: list[tuple[int, dict[str, str]]], path: Path
) -> list[tuple[int, dict[str, str]]]:
    """Rows without those that say again what one before says.

    Raises:
        SourceError: if two rows give one image different labels.
    """
    labels: dict[str, tuple[int, str]] = {}
    kept: dict[tuple[str, ...], tuple[int, dict[str, str]]] = {}
    for number, row in rows:
        label = f"{row['category']}/{row['label']}"
        place = posixpath.normpath(row["path"].replace("\\", "/"))
        first, before = labels.setdefault(place, (number, label))
        if label != before:
            raise SourceError(
                f"{path}: row {number}: {row['path']} is {label}, but {before} in row {first}"
            )
        kept.setdefault(tuple(f"{key} {row[key]}" for key in sorted(row)), (number, row))
    return list(kept.values())


def _place(row: dict[str, str], file: str) -> str:
    return f"{row['category']}/{row['split']}/{row['label']}/{file}"


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Rows with their numbers as an editor shows them, every column filled."""
    try:
        text = _read_text(path)
        if path.suffix.lower() == ".csv":
            skipped = text.startswith("sep=")  # a line for Excel alone
            text = text.partition("\n")[2] if skipped else text
            head = text.partition("\n")[0]
            delimiter = max(_DELIMITERS, key=head.count)
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
            raw: list[tuple[int, object]] = [(reader.line_num + skipped, dict(r)) for r in reader]
        else:
            lines = enumerate(text.split("\n"), 1)
            raw = [(number, json.loads(line)) for number, line in lines if line.strip()]
            raw = [(number, _read_lookout(path, number, row)) for number, row in raw]
    except (
        ValueError, RecursionError, LookupError, TypeError, AttributeError, csv.Error
    ) as error:  # fmt: skip
        raise SourceError(f"{path}: not a table of images: {error}") from error
    rows = [(number, _name_columns(path, number, row)) for number, row in raw]
    filled = [(number, _check_row(path, number, row)) for number, row in rows if any(row.values())]
    if not filled:
        raise SourceError(f"{path}: no rows")
    return filled


def _read_lookout(path: Path, number: int, row: object) -> object:
    """A row of Lookout for Vision with our names of columns; any other row as it is.

    Its addresses are of a bucket; the longest end of them that is a file beside the manifest is meant.
    """
    if not isinstance(row, Mapping) or "source-ref" not in row:
        return row
    about = {key.removesuffix("-metadata"): row[key] for key in row if key.endswith("-metadata")}
    numbers = [key for key in about if str(row.get(key)) in ("0", "1")]
    label = next(
        (key for key in numbers if "class-name" in (about[key] or ())), next(iter(numbers), None)
    )
    mask = next((key for key in about if key.endswith("-ref") and key in row), None)
    if label is None:
        raise SourceError(f"{path}: row {number}: no label of 0 or 1 for {row['source-ref']}")

    def find(key: str) -> str:
        parts = PurePosixPath(str(row[key]).partition("://")[2]).parts[1:]
        ends = ["/".join(parts[at:]) for at in range(len(parts))]
        found = [end for end in ends if ".." not in parts and _is_there(path.parent / end)]
        if not found:
            raise SourceError(
                f"{path}: row {number}: {row[key]} is not here; copy the bucket's files beside the manifest"
            )
        return found[0]

    named = str(about[label].get("class-name", ""))
    is_normal = is_normal_label(named or str(row[label]))
    if named and is_label(named) and is_normal != (str(row[label]) == "0"):
        raise SourceError(
            f"{path}: row {number}: {label} is {row[label]}, but its class is {named}"
        )
    colours = about[mask].get("internal-color-map", {}) if mask else {}
    return {
        "path": find("source-ref"),
        "category": path.resolve().parent.name,
        "label": GOOD if is_normal else named or "anomaly",
        "mask": find(mask) if mask and not is_normal else "",
        "split": "test" if "test" in path.stem.casefold() else "",
        _BACKGROUND: colours.get("0", {}).get("hex-color", ""),
    }


def _differ(mask: Path, *, background: str) -> NDArray[np.bool_]:
    """Where an image of a mask, [H, W], has another colour than the background, such as `#ffffff`."""
    try:
        return np.asarray((load_image(mask) != ImageColor.getrgb(background)[:3]).any(axis=2))
    except (ImageError, ValueError) as error:
        raise SourceError(f"{mask}: no mask can be read of it: {error}") from error


def _read_text(path: Path) -> str:
    """Text of a table: Unicode, else in the encoding of Windows in which a usual label stands in it.

    Without such a label in letters beyond ASCII, the western one.
    """
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith(_UTF_16) else "utf-8-sig"
    if content[:2].count(0) == 1:  # UTF-16 without its mark
        encoding = "utf-16-le" if content[1] == 0 else "utf-16-be"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8-sig":
            raise
    texts = {}
    for encoding in _ENCODINGS:
        with suppress(UnicodeDecodeError):
            texts[encoding] = content.decode(encoding)
    if not texts:
        raise ValueError("neither Unicode nor an encoding of Windows")
    labels = {word for word in NORMAL_WORDS | DEFECT_WORDS if not word.isascii()}
    says = [one for one in texts if labels & {*re.findall(r"\w+", texts[one].casefold())}]
    chosen = next(iter(says or texts))
    logger.info("%s: no Unicode, so it is read as %s", path, chosen)
    return texts[chosen]


def _name_columns(path: Path, number: int, raw: object) -> dict[str, str]:
    """A row with our names of columns and its values as text; columns without name and value go."""
    where = f"{path}: row {number}"
    if not isinstance(raw, Mapping):
        raise SourceError(f"{where}: expected the keys {', '.join(_REQUIRED)}")
    row: dict[str, str] = {}
    for key, value in raw.items():
        name = str(key or "").strip().casefold()
        values = value if isinstance(value, list) else [value]  # a list: more cells than columns
        text = " ".join(str(one).strip() for one in values if one is not None).strip()
        name = _ALIASES.get(name, name)
        if name in (*_COLUMNS, _BACKGROUND):
            row[name] = text
        elif text and not name:
            raise SourceError(
                f"{where}: more cells than the header has columns: {text!r}; quote what holds the delimiter"
            )
        elif text or name:
            raise SourceError(
                f"{where}: unknown column {name or text!r}; a table has {', '.join(_COLUMNS)}"
            )
    return row


def _check_row(path: Path, number: int, raw: Mapping[str, str]) -> dict[str, str]:
    where = f"{path}: row {number}"
    row = {key: raw.get(key, "") for key in (*_COLUMNS, _BACKGROUND)}
    for key in _REQUIRED:
        if not row[key]:
            raise SourceError(f"{where}: {key} is missing")
    try:
        row["category"], row["label"] = check_category(row["category"]), clean_label(row["label"])
    except DataError as error:
        raise SourceError(f"{where}: {error}") from error
    for key in ("path", "mask"):
        row[key] = row[key].replace("\\", "/")
    row["split"] = row["split"].casefold() or ("train" if row["label"] == GOOD else "test")
    if row["split"] not in ("train", "test"):
        raise SourceError(f"{where}: split is {row['split']!r}, not train or test")
    return row
