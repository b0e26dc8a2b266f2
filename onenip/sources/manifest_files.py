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

MANIFEST_SUFFIXES = frozenset({".csv", ".jsonl"})
_REQUIRED = ("path", "category", "label")
_COLUMNS = (*_REQUIRED, "mask", "split")
_ALIASES = {"image": "path", "file": "path", "filename": "path", "object": "category"}
_DELIMITERS = ",;\t"
_ENCODINGS = ("utf-8-sig", "cp1252")  # Excel writes either


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


def _place(row: dict[str, str], file: str) -> str:
    return f"{row['category']}/{row['split']}/{row['label']}/{file}"


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Rows with their numbers as an editor shows them, every column filled."""
    try:
        text = _read_text(path)
        if path.suffix.lower() == ".csv":
            head = text.partition("\n")[0]
            delimiter = max(_DELIMITERS, key=head.count)
            reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
            raw: list[tuple[int, object]] = [(reader.line_num, dict(row)) for row in reader]
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
    for encoding in _ENCODINGS:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise ValueError("neither UTF-8 nor Windows' own encoding")


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
