"""A score per test image, and the files of an evaluation's folder, written and read."""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from onenip.data.labels import GOOD
from onenip.errors import DataError
from onenip.evaluation.counts import VerdictCounts
from onenip.evaluation.metrics.resampling import PixelGrid

SCORE_COLUMNS = ("image", "category", "label", "score", "threshold", "verdict")
REPORT, SCORES = "report.html", "scores.csv"
ANOMALOUS, NORMAL = "anomalous", "normal"

_GRID_DTYPES = {
    "keys": np.uint32,
    "alarms": np.int32,
    "found": np.int32,
    "overlap": np.float32,
    "totals": np.int64,
}


@dataclass(frozen=True)
class ImageResult:
    """The score of one test image.

    Attributes:
        name: the image, relative to the data root; unique.
        category: its product category.
        label: "good", or the kind of defect.
        score: the image's score.
        threshold: above which the model calls this category's images anomalous.
    """

    name: str
    category: str
    label: str
    score: float
    threshold: float

    @property
    def is_defective(self) -> bool:
        """The truth."""
        return self.label != GOOD

    @property
    def is_anomalous(self) -> bool:
        """The verdict."""
        return self.score > self.threshold


@dataclass(frozen=True)
class Evaluation:
    """An evaluation's folder, read back.

    Attributes:
        folder: where it was, or the first of several.
        metrics: content of `metrics.json`.
        results: one per test image, in the order of `scores.csv`.
        grids: pixel counts per category, and the names of the images of their rows.
    """

    folder: Path
    metrics: dict[str, Any]
    results: tuple[ImageResult, ...]
    grids: dict[str, tuple[PixelGrid, tuple[str, ...]]]

    @classmethod
    def load(cls, *folders: Path) -> Evaluation:
        """Everything that two evaluations are compared by; several folders are of other categories each.

        Raises:
            DataError: if a folder is not what `onenip evaluate` writes.
        """
        metrics: dict[str, Any] = {}
        results: list[ImageResult] = []
        grids: dict[str, tuple[PixelGrid, tuple[str, ...]]] = {}
        for folder in folders:
            own = load_metrics(folder / "metrics.json")
            by_category = {
                key: {**metrics.get(key, {}), **own.get(key, {})}
                for key in ("categories", "champions")
            }
            metrics = {**own, **by_category}
            results += load_scores(folder / SCORES)
            grids |= _load_grids(folder / "pixel_counts.npz")
        return cls(folders[0], metrics, tuple(results), grids)


def load_metrics(path: Path) -> dict[str, Any]:
    """Content of a `metrics.json`, or of the one in a folder.

    Raises:
        DataError: if it is missing, or not what `onenip evaluate` writes.
    """
    path = path / "metrics.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for row in (content["mean"], *content["categories"].values()):
            for value in row.values():
                _ = None if value is None else float(value)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path}: no metrics; run `onenip evaluate` first", path=path) from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise DataError(f"{path}: not the metrics of an evaluation: {error}", path=path) from error
    return dict(content)


def group_figures(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Defined figures per category, and their mean under "mean", of what `load_metrics` gives.

    The counts of wrong verdicts are among them, as `VerdictCounts` names them; under "mean" stand their sums.
    """
    counts = {group: found.to_dict() for group, found in read_counts(metrics).items()}
    groups = {**metrics["categories"], "mean": metrics["mean"]}
    return {
        group: {name: float(value) for name, value in figures.items() if value is not None}
        | {name: float(value) for name, value in counts.get(group, {}).items()}
        for group, figures in groups.items()
    }


def read_counts(metrics: Mapping[str, Any]) -> dict[str, VerdictCounts]:
    """Wrong verdicts per category, and all together under "mean"; empty for an older `metrics.json`."""
    counts = {name: VerdictCounts(**row) for name, row in metrics.get("verdicts", {}).items()}
    if counts:
        counts["mean"] = sum(counts.values(), start=VerdictCounts(0, 0, 0, 0))
    return counts


def write_scores(path: Path, results: Sequence[ImageResult]) -> None:
    """Write `scores.csv`; scores are written so that reading them gives the same numbers."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(SCORE_COLUMNS)
        for item in results:
            verdict = ANOMALOUS if item.is_anomalous else NORMAL
            row = (item.name, item.category, item.label, item.score, item.threshold, verdict)
            writer.writerow(row)


def load_scores(path: Path) -> list[ImageResult]:
    """Results in a `scores.csv`.

    Raises:
        DataError: if it is missing, or not what `onenip evaluate` writes.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != SCORE_COLUMNS:
                raise DataError(f"{path}: not the scores of an evaluation", path=path)
            return [_to_result(row) for row in reader]
    except FileNotFoundError as error:
        raise DataError(f"{path}: no scores; run `onenip evaluate` first", path=path) from error
    except (ValueError, TypeError, OSError) as error:
        raise DataError(f"{path}: not the scores of an evaluation: {error}", path=path) from error


def write_grids(path: Path, grids: Mapping[str, tuple[PixelGrid, Sequence[str]]]) -> None:
    """Write `pixel_counts.npz`: per category, what `metrics.resampling.PixelGrid` holds."""
    arrays: dict[str, Any] = {}
    for category, (grid, names) in grids.items():
        arrays[f"{category}/names"] = np.array(names, dtype=np.str_)
        for field, dtype in _GRID_DTYPES.items():
            arrays[f"{category}/{field}"] = getattr(grid, field).astype(dtype)
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _to_result(row: dict[str, str]) -> ImageResult:
    return ImageResult(
        name=row["image"],
        category=row["category"],
        label=row["label"],
        score=float(row["score"]),
        threshold=float(row["threshold"]),
    )


def _load_grids(path: Path) -> dict[str, tuple[PixelGrid, tuple[str, ...]]]:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            categories = [key.removesuffix("/names") for key in arrays if key.endswith("/names")]
            return {
                category: (
                    PixelGrid(
                        keys=arrays[f"{category}/keys"],
                        alarms=arrays[f"{category}/alarms"].astype(np.float64),
                        found=arrays[f"{category}/found"].astype(np.float64),
                        overlap=arrays[f"{category}/overlap"].astype(np.float64),
                        totals=arrays[f"{category}/totals"].astype(np.float64),
                    ),
                    tuple(arrays[f"{category}/names"].tolist()),
                )
                for category in categories
            }
    except (ValueError, KeyError, OSError, EOFError, BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not the counts of an evaluation: {error}", path=path) from error
