"""Validation: what is wrong with an image is known before a GPU sees it.

Promises a manifest with a row per image that is the same for the same data and params, a quarantine with
file, rule and reason, and Data Docs. Never writes to the data folder, which DVC owns: quarantine means
left out of every later stage, listed, and copied under `quarantine/`. The one package that knows Great
Expectations.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from onenip.data.labels import GOOD
from onenip.data.loading import count_cores
from onenip.data.manifest import MANIFEST_COLUMNS, Subset, assign_subset
from onenip.data.validation.docs import Breach, Problem, group_breaches, write_pages
from onenip.data.validation.frames import make_category_frame, make_file_frame
from onenip.data.validation.measuring import (
    decide_ranges,
    list_category_folders,
    list_files,
    measure,
)
from onenip.data.validation.rules import Rule, category_rules, check_names, file_rules
from onenip.data.validation.suite import Judge
from onenip.errors import DataError
from onenip.folders import replace_folder
from onenip.params import DataParams, ValidateParams

_INTEGERS = ("width", "height", "bytes")


@dataclass(frozen=True)
class ValidationResult:
    """What validation found.

    Attributes:
        manifest: the CSV that later stages read.
        summary: contents of `summary.json`.
        breaches: every breach of a rule, in order of the rules; warnings of what is left out are not among.
        problems: the same by rule, the gravest first.
    """

    manifest: Path
    summary: dict[str, Any]
    breaches: tuple[Breach, ...]
    problems: tuple[Problem, ...]


def validate(
    data_dir: Path,
    out_dir: Path,
    *,
    data: DataParams,
    params: ValidateParams,
    workers: int | None = None,
    progress: bool = False,
) -> ValidationResult:
    """Measure every file, judge it, and write what was found.

    Args:
        data_dir: folder in MVTec layout; only read.
        out_dir: replaced as a whole once everything is written; untouched on an error.
        data: how normal training images are divided.
        params: what a usable image is.
        workers: processes; None: one per core.
        progress: whether to show a bar.

    Returns:
        Where the manifest is, and what was found.

    Raises:
        DataError: if there are no images, none is usable, or a rule of severity `error` is broken.
        ParamsError: if a severity is given for a rule that does not exist, or `excluded` names no image.
    """
    check_names(params)
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such folder; run `onenip download` first", path=data_dir)
    files = list_files(data_dir)
    if all(file.stray for file in files):
        raise DataError(
            f"{data_dir}: no images in <category>/{{train,test}}/<label>/", path=data_dir
        )
    workers = workers or count_cores()
    files, doubts = decide_ranges(files, data_dir, declared=data.declared_range, workers=workers)
    rows = measure(files, data_dir, workers=workers, progress=progress)
    frame = make_file_frame(
        rows,
        near_duplicate_bits=params.near_duplicate_bits,
        max_deviation=params.max_deviation,
        excluded=params.excluded,
    )
    try:
        return _write_all(frame, doubts, data_dir, out_dir, data, params)
    except OSError as error:
        raise DataError(f"{out_dir}: cannot be written ({error})", path=out_dir) from error


def _write_all(
    frame: pd.DataFrame,
    range_doubts: dict[str, str],
    data_dir: Path,
    out_dir: Path,
    data: DataParams,
    params: ValidateParams,
) -> ValidationResult:
    with replace_folder(out_dir) as draft:
        result = _write(frame, range_doubts, data_dir, draft, out_dir, data, params)
        _stop_on_error(result, data_dir)
    return result


def _write(
    frame: pd.DataFrame,
    range_doubts: dict[str, str],
    data_dir: Path,
    partial: Path,
    out_dir: Path,
    data: DataParams,
    params: ValidateParams,
) -> ValidationResult:
    judge = Judge(partial / "data_docs")
    rules = [*file_rules(params), *category_rules(params)]
    breaches = judge.judge("files", frame, file_rules(params))
    reasons = _collect_reasons(breaches)
    usable = frame[~frame["path"].isin(list(reasons)) & frame["stray"].isna()]
    categories = make_category_frame(list_category_folders(data_dir), usable, range_doubts)
    more = judge.judge("categories", categories, category_rules(params))
    unusable = _collect_reasons(more)
    for path, category in zip(usable["path"], usable["category"], strict=True):
        if category in unusable:
            rule, reason = unusable[category]
            reasons[path] = (rule, f"category {category}: {reason}")
            breaches.append(Breach(path, rule, "quarantine", reasons[path][1]))
    counts = _write_manifest(partial / "manifest.csv", frame, reasons, data)
    lost = reasons.keys() | unusable.keys()
    breaches = [
        b
        for b in breaches + more
        # that rule says how to have the images of a lost category read
        if b.severity != "warning" or b.path not in lost or b.rule == "samples_declared"
    ]
    listed = [[b.path, b.rule, b.reason] for b in breaches if b.severity == "quarantine"]
    with _write_csv(partial / "quarantine.csv", ("file", "rule", "reason")) as writer:
        writer.writerows(sorted(listed))
    _copy_quarantined(sorted(reasons), data_dir, partial / "quarantine")
    summary = _summarise(counts, breaches, rules)
    text = json.dumps(summary, indent=2, ensure_ascii=False, sort_keys=True)
    (partial / "summary.json").write_text(text + "\n", encoding="utf-8")
    problems = group_breaches(breaches, rules)
    judge.write_docs()
    write_pages(
        partial / "data_docs",
        data_dir=data_dir,
        broken=judge.broken,
        problems=problems,
        summary=summary,
    )
    return ValidationResult(out_dir / "manifest.csv", summary, tuple(breaches), tuple(problems))


def _collect_reasons(breaches: list[Breach]) -> dict[str, tuple[str, str]]:
    """First rule and reason for each path that is quarantined."""
    reasons: dict[str, tuple[str, str]] = {}
    for breach in breaches:
        if breach.severity in ("quarantine", "error"):
            reasons.setdefault(breach.path, (breach.rule, breach.reason))
    return reasons


def _write_manifest(
    path: Path, frame: pd.DataFrame, reasons: dict[str, tuple[str, str]], data: DataParams
) -> dict[str, Counter[str]]:
    """Write the manifest, and count by category what its images are used for."""
    counts: dict[str, Counter[str]] = {}
    known = [column for column in MANIFEST_COLUMNS if column in frame]
    with _write_csv(path, MANIFEST_COLUMNS) as writer:
        for values in frame.loc[frame["stray"].isna(), known].itertuples(index=False):
            row: dict[str, Any] = dict(zip(known, values, strict=True))
            row["subset"] = _find_subset(row, data)
            rule, reason = reasons.get(row["path"], ("", ""))
            row["status"] = "quarantined" if rule else "ok"
            row["reason"] = f"{rule}: {reason}" if rule else ""
            writer.writerow([_format(column, row[column]) for column in MANIFEST_COLUMNS])
            is_defective = row["subset"] == "test" and row["label"] != GOOD
            use = "test_defective" if is_defective else row["subset"]
            counts.setdefault(row["category"], Counter())["quarantined" if rule else use] += 1
    return counts


def _find_subset(row: dict[str, Any], data: DataParams) -> Subset:
    if row["split"] == "test":
        return "test"
    if row["label"] != GOOD:
        return "defect"
    if not row["sha256"]:
        return "fit"
    return assign_subset(
        row["sha256"],
        calibration_fraction=data.calibration_fraction,
        holdout_fraction=data.holdout_fraction,
    )


def _format(column: str, value: str | float | None) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return ""
    if column in _INTEGERS:
        return str(int(value))
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def _summarise(
    counts: dict[str, Counter[str]], breaches: list[Breach], rules: list[Rule]
) -> dict[str, Any]:
    broken = Counter(breach.rule for breach in breaches)
    images = sum(counter.total() for counter in counts.values())
    return {
        "images": images,
        "usable": images - sum(counter["quarantined"] for counter in counts.values()),
        "categories": {name: dict(sorted(counter.items())) for name, counter in counts.items()},
        "rules": {r.name: {"severity": r.severity, "breaches": broken[r.name]} for r in rules},
        "breaches": [
            {"file": b.path, "rule": b.rule, "severity": b.severity, "reason": b.reason}
            for b in breaches
        ],
    }


def _stop_on_error(result: ValidationResult, data_dir: Path) -> None:
    errors = [breach for breach in result.breaches if breach.severity == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        first = errors[0]
        raise DataError(
            f"{data_dir / first.path}: {first.rule}: {first.reason}{more}",
            path=data_dir / first.path,
        )
    if not result.summary["usable"]:
        first = next(breach for breach in result.breaches if breach.severity == "quarantine")
        raise DataError(
            f"{data_dir}: no usable image is left; the first is {first.path}: {first.reason}",
            path=data_dir,
        )


def _copy_quarantined(paths: list[str], data_dir: Path, folder: Path) -> None:
    for path in paths:
        source = data_dir / path
        if source.is_file():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


@contextmanager
def _write_csv(path: Path, columns: tuple[str, ...]) -> Iterator[Any]:
    """A writer of the rows that follow the heading."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        yield writer
