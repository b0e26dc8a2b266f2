"""Image sets described by a table: CSV or JSON lines with path, category, label and mask.

A column `split` (train or test) is optional: without it, good images are for training and others for
testing. Tables from Excel are read as it writes them, and the list of VisA with its own names of columns.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from onenip.data.labels import GOOD, check_category, clean_label
from onenip.errors import DataError, SourceError
from onenip.sources.items import Fetched, Item, Origin, Workspace, check_relative
from onenip.sources.layout import check_clashes, mask_target

VISA_TABLE = "/split_csv/1cls.csv"
MANIFEST_SUFFIXES = frozenset({".csv", ".jsonl"})
_REQUIRED = ("path", "category", "label")
_COLUMNS = (*_REQUIRED, "mask", "split")
_ALIASES = {"image": "path", "file": "path", "filename": "path", "object": "category"}
_DELIMITERS = ",;\t"
_ENCODINGS = ("utf-8-sig", "cp1252")  # Excel writes either, or UTF-16 with its mark
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class ManifestSource:
    """A table of images; its paths are relative to the folder that it lies in, and stay below it."""

    name: str
    path: Path

    def fetch(self, workspace: Workspace) -> Fetched:  # noqa: ARG002  # files are read where they are
        """Place the images as their rows say."""
        rows = _read_rows(self.path)
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
                items.append(Item(place, mask, is_mask=mask.suffix.lower() != ".png"))
        check_clashes([item.target for item in items], self.name)
        return Fetched(items, Origin(self.name, str(self.path)))

    def _find(self, name: str, number: int) -> Path:
        where = f"{self.path}: row {number}"
        path = self.path.parent / check_relative(name, where)
        if not path.is_file():
            raise SourceError(f"{where}: no such file {name}")
        return path


def name_format(path: Path) -> str:
    """Name of the annotation format of a JSON file that is none of ours; empty if it is unknown."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            content = json.loads(file.readline() if path.suffix == ".manifest" else file.read())
    except (OSError, ValueError, RecursionError):
        return ""
    if not isinstance(content, dict):
        return ""
    for name, keys in {
        "Lookout for Vision's manifest": {"source-ref"},
        "COCO annotations": {"images", "annotations"},
        "LabelMe polygons": {"shapes", "imagePath"},
        "Real-IAD's list": {"meta", "train", "test"},
    }.items():
        if keys <= content.keys():
            return name
    return ""


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
    if not path.is_file():
        raise SourceError(f"visa: split_csv/1cls.csv names {name}, which is not there")
    return path


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
    except (ValueError, RecursionError, csv.Error) as error:
        raise SourceError(f"{path}: not a table of images: {error}") from error
    rows = [(number, _name_columns(path, number, row)) for number, row in raw]
    filled = [(number, _check_row(path, number, row)) for number, row in rows if any(row.values())]
    if not filled:
        raise SourceError(f"{path}: no rows")
    return filled


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    for encoding in ("utf-16",) if content.startswith(_UTF_16) else _ENCODINGS:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise ValueError("neither Unicode nor Windows' own encoding")


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
        if name in _COLUMNS:
            row[name] = text
        elif text or name:
            raise SourceError(
                f"{where}: unknown column {name or text!r}; a table has {', '.join(_COLUMNS)}"
            )
    return row


def _check_row(path: Path, number: int, raw: Mapping[str, str]) -> dict[str, str]:
    where = f"{path}: row {number}"
    row = {key: raw.get(key, "") for key in _COLUMNS}
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
