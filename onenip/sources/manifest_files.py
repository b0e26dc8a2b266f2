"""Image sets described by a table: CSV or JSON lines with path, category, label and mask.

A column `split` (train or test) is optional: without it, good images are for training and others for testing.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from onenip.data.manifest import GOOD
from onenip.errors import SourceError
from onenip.sources.items import Fetched, Item, Origin, Workspace
from onenip.sources.layout import check_clashes, mask_target

MANIFEST_SUFFIXES = frozenset({".csv", ".jsonl"})
_REQUIRED = ("path", "category", "label")
_OPTIONAL = ("mask", "split")


@dataclass(frozen=True)
class ManifestSource:
    """A table of images; its paths are relative to the folder that it lies in."""

    name: str
    path: Path

    def fetch(self, workspace: Workspace) -> Fetched:  # noqa: ARG002  # files are read where they are
        """Place the images as their rows say."""
        rows = _read_rows(self.path)
        basenames = Counter(_place(row, Path(row["path"]).name) for _, row in rows)
        items = []
        for number, row in rows:
            path = Path(row["path"])
            target = _place(row, path.name)
            if basenames[target] > 1:  # the same file name in several folders
                target = _place(row, "-".join(part for part in path.parts if part not in "/.."))
            items.append(Item(target, self._find(row["path"], number)))
            if row["mask"]:
                place = mask_target(row["category"], row["label"], Path(target).stem)
                mask = self._find(row["mask"], number)
                items.append(Item(place, mask, is_mask=mask.suffix.lower() != ".png"))
        check_clashes([item.target for item in items], self.name)
        return Fetched(items, Origin(self.name, str(self.path)))

    def _find(self, name: str, number: int) -> Path:
        path = self.path.parent / name
        if not path.is_file():
            raise SourceError(f"{self.path}: row {number}: no such file {name}")
        return path


def _place(row: dict[str, str], file: str) -> str:
    return f"{row['category']}/{row['split']}/{row['label']}/{file}"


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Rows with their numbers as an editor shows them, every column filled."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.suffix.lower() == ".csv":
                raw = [(number, dict(row)) for number, row in enumerate(csv.DictReader(file), 2)]
            else:
                raw = [(n, json.loads(line)) for n, line in enumerate(file, 1) if line.strip()]
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise SourceError(f"{path}: not a table of images: {error}") from error
    if not raw:
        raise SourceError(f"{path}: no rows")
    return [(number, _check_row(path, number, row)) for number, row in raw]


def _check_row(path: Path, number: int, raw: object) -> dict[str, str]:
    where = f"{path}: row {number}"
    if not isinstance(raw, dict):
        raise SourceError(f"{where}: expected the keys {', '.join(_REQUIRED)}")
    unknown = set(map(str, raw)) - {*_REQUIRED, *_OPTIONAL}
    if unknown:
        raise SourceError(f"{where}: unknown columns {', '.join(sorted(unknown))}")
    row = {key: str(raw.get(key) or "").strip() for key in (*_REQUIRED, *_OPTIONAL)}
    for key in _REQUIRED:
        if not row[key]:
            raise SourceError(f"{where}: {key} is missing")
    for key in ("category", "label"):
        if "/" in row[key] or "\\" in row[key] or row[key].startswith("."):
            raise SourceError(f"{where}: {key} {row[key]!r} cannot be the name of a folder")
    row["split"] = row["split"] or ("train" if row["label"] == GOOD else "test")
    if row["split"] not in ("train", "test"):
        raise SourceError(f"{where}: split is {row['split']!r}, not train or test")
    return row
