"""Content of the report, gathered from the evaluation's folder and its neighbours.

What is missing is left out of the page; nothing is computed here that `metrics.json` does not say.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from onenip.detector.detector import Detector
from onenip.detector.operating_points import describe_doubts, describe_point
from onenip.evaluation import curves
from onenip.evaluation.counts import VerdictCounts, describe_wrong
from onenip.evaluation.gallery import Picture, load_index
from onenip.evaluation.report import charts
from onenip.evaluation.report.champion_side import ChampionSide, FigureChange
from onenip.evaluation.report.pictures import (
    describe_verdict,
    embed,
    show,
    show_outliers,
    show_prompts,
)
from onenip.evaluation.results import SCORES, ImageResult, load_metrics, load_scores
from onenip.folders import write_whole
from onenip.model.file import CategorySpec
from onenip.version import __version__

COLUMNS = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image AP",
    "image_f1_max": "Image F1-max",
    "pixel_auroc": "Pixel AUROC",
    "pixel_ap": "Pixel AP",
    "pixel_f1_max": "Pixel F1-max",
    "aupro": "AUPRO 30 %",
    "aupro_05": "AUPRO 5 %",
    "accuracy": "Accuracy",
    "recall": "Recall",
    "false_alarm_rate": "False alarms",
}
TITLES = {
    "miss": "Defective images with the lowest scores",
    "false_alarm": "Good images with the highest scores",
    "sample": "A sample",
}
_SHEET_SIDE_PX = 1400
_TRIED_ON = "of the weights tried, on held-out normals and synthetic anomalies"
_CURVE_POINTS = 300
_SHOWN_ALARMS = 0.3  # share of false alarms up to which operating points are drawn


@dataclass(frozen=True)
class Decision:
    """What is known of a model beside its evaluation, for the person who signs its report.

    Attributes:
        facts: lines for the head of the report, such as date, commit and author.
        versions: registered version of each category, in words.
        gate: verdict and reasons of the gate for each category.
    """

    facts: Sequence[tuple[str, str]] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    gate: Mapping[str, tuple[str, Sequence[str]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One figure of the table, ready to be read."""

    text: str
    interval: str
    reason: str
    change: FigureChange | None  # from the champion's


def write_report(
    folder: Path,
    out: Path,
    *,
    model_dir: Path | None = None,
    data_dir: Path | None = None,
    synthesis_dir: Path | None = None,
    training_dir: Path | None = None,
    champion: Sequence[Path] = (),
    decision: Decision | None = None,
) -> None:
    """Write the report of an evaluation, a document to sign: one HTML file that holds its pictures.

    Args:
        folder: what `onenip evaluate` wrote.
        out: the file.
        model_dir: the model, for its prompts, its operating points and where it came from.
        data_dir: the data set, for pictures of outliers among its normals.
        synthesis_dir: what `onenip synthesize` wrote, for samples of synthetic anomalies.
        training_dir: the folder of `curves.csv` of the training.
        champion: folders of the evaluations that stand beside this one, of the same test images.
        decision: facts for the person who signs.

    Raises:
        DataError: if the evaluation or the champion's is not what `onenip evaluate` writes.
        CheckpointError: if the model cannot be read.
    """
    metrics = load_metrics(folder)
    decision = decision or Decision()
    beside = (
        ChampionSide.load(champion, folder, confidence=metrics["confidence"]) if champion else None
    )
    results = load_scores(folder / SCORES)
    detector = Detector.load(model_dir) if model_dir is not None else None
    pictures = load_index(folder)
    categories = sorted(metrics["categories"])
    of = {name: [item for item in results if item.category == name] for name in categories}
    counts = {name: _count(items) for name, items in of.items()}
    normals = metrics.get("training_normals", {})
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("onenip.evaluation.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("page.html.j2").render(
        version=__version__,
        metrics=metrics,
        columns=COLUMNS,
        describe_verdict=describe_verdict,
        table=_table(metrics, beside, categories),
        beside=beside,
        tests=len(results),
        decision=decision,
        wrong={name: _describe_wrong(found, metrics) for name, found in counts.items()},
        total=_describe_wrong(sum(counts.values(), VerdictCounts(0, 0, 0, 0)), metrics),
        normals=normals,
        head=_head(metrics, detector, decision),
        roc=_draw_trade_off(of),
        pr=_draw_precision(of),
        sections=[
            _section(name, of[name], metrics, folder, pictures, beside)
            | _describe_promises(name, of[name], detector, data_dir)
            | {"doubts": metrics.get("doubts", {}).get(name, [])}
            for name in categories
        ],
        prompts=show_prompts(detector),
        sheet=embed(_sheet_path(synthesis_dir), side=_SHEET_SIDE_PX),
        training=_training_charts(training_dir),
        facts=_facts(metrics, detector),
    )
    with write_whole(out) as draft:
        draft.write_text(page, encoding="utf-8")


def _table(
    metrics: Mapping[str, Any], beside: ChampionSide | None, categories: Sequence[str]
) -> list[tuple[str, dict[str, Cell]]]:
    rows = []
    for name in ("mean", *categories):
        values, ends, reasons = (
            _part(metrics, section, name) for section in ("", "intervals", "reasons")
        )
        cells = {
            key: _cell(
                values.get(key),
                ends.get(key),
                reasons.get(key),
                beside.find_figure_change(name, key) if beside else None,
            )
            for key in COLUMNS
        }
        rows.append((name, cells))
    return rows


def _part(metrics: Mapping[str, Any], section: str, name: str) -> dict[str, Any]:
    inside = metrics.get(section, {}) if section else metrics
    part = inside.get("mean") if name == "mean" else inside.get("categories", {}).get(name)
    return dict(part or {})


def _cell(
    value: float | None,
    ends: Sequence[float] | None,
    reason: str | None,
    change: FigureChange | None,
) -> Cell:
    return Cell(
        text="n/a" if value is None else f"{100 * value:.1f}",
        interval=f"{100 * ends[0]:.1f}-{100 * ends[1]:.1f}" if ends else "",
        reason=reason or "",
        change=change,
    )


def _count(results: Sequence[ImageResult]) -> VerdictCounts:
    return VerdictCounts.count((one.is_defective, one.is_anomalous) for one in results)


def _describe_wrong(counts: VerdictCounts, metrics: Mapping[str, Any]) -> dict[str, str]:
    return describe_wrong(counts.to_dict(), confidence=metrics["confidence"])


def _draw_trade_off(of: Mapping[str, Sequence[ImageResult]]) -> str:
    """Defects found for false alarms at every threshold, the model's own one marked."""
    lines = [(name, curves.roc_points(items)) for name, items in of.items()]
    if not any(line for _, line in lines):
        return ""
    marks = []
    for name, items in of.items():
        marks.append((f"{name}: the model's threshold", _place(_count(items))))
    return charts.draw_curves(
        lines,
        x=charts.Axis("false alarms, share of good images", 0, 1),
        y=charts.Axis("defects found, share", 0, 1),
        marks=marks,
    )


def _place(found: VerdictCounts) -> charts.Point:
    """False alarms and defects found, as shares."""
    return (
        found.false_alarms / found.good if found.good else 0.0,
        1 - found.missed / found.defective if found.defective else 0.0,
    )


def _draw_precision(of: Mapping[str, Sequence[ImageResult]]) -> str:
    lines = [(name, curves.pr_points(items)) for name, items in of.items()]
    if not any(line for _, line in lines):
        return ""
    return charts.draw_curves(
        lines, x=charts.Axis("recall", 0, 1), y=charts.Axis("precision", 0, 1)
    )


def _section(
    name: str,
    results: Sequence[ImageResult],
    metrics: Mapping[str, Any],
    folder: Path,
    pictures: Sequence[Picture],
    beside: ChampionSide | None,
) -> dict[str, Any]:
    bins = curves.histogram(results)
    threshold = metrics.get("thresholds", {}).get(name, {}).get("image")
    chart = charts.draw_histogram(bins, threshold=threshold, label="score") if bins else ""
    shown = {
        title: [
            show(picture, folder)
            for picture in pictures
            if picture.kind == kind and picture.result.category == name
        ]
        for kind, title in TITLES.items()
    }
    return {
        "name": name,
        "images": metrics.get("images", {}).get(name, {}),
        "histogram": chart,
        "threshold": threshold,
        "defects": metrics.get("defects", {}).get(name, []),
        "champion": beside.champions.get(name, "") if beside else "",
        "changes": beside.find_verdict_changes(name) if beside else None,
        "pictures": {title: items for title, items in shown.items() if items},
    }


def _describe_promises(
    name: str, results: Sequence[ImageResult], detector: Detector | None, data_dir: Path | None
) -> dict[str, Any]:
    """What the model's threshold promises of a category, and what to know before relying on it."""
    if detector is None or name not in detector.spec.categories:
        return {"promises": [], "warnings": [], "outliers": [], "operating_points": ""}
    known = detector.spec.categories[name]
    basis = f"Rests on {len(known.normal_names)} normal images"
    return {
        "promises": [f"{basis}: {describe_point(known.operating_point)}"],
        "warnings": describe_doubts(known),
        "outliers": show_outliers(known, data_dir),
        "operating_points": _draw_operating_points(known, results),
    }


def _draw_operating_points(known: CategorySpec, results: Sequence[ImageResult]) -> str:
    """Promises of the thresholds and what they do on the test images, the model's own ones marked."""
    points = [
        (one.false_alarm_rate, one.synthetic_recall)
        for one in known.curve
        if one.synthetic_recall is not None
    ]
    if not points:
        return ""
    chosen, measured = known.operating_point, curves.roc_points(results)
    marks = [
        (
            "promised at the model's threshold",
            (chosen.false_alarm_rate, chosen.synthetic_recall or 0.0),
        )
    ]
    if measured:
        marks.append(("measured at the model's threshold", _place(_count(results))))
    end = max(_SHOWN_ALARMS, *(place[0] for _, place in marks))
    lines = [[(x, y) for x, y in line if x <= end] for line in (points, measured)]
    return charts.draw_curves(
        [
            ("promised, of synthetic anomalies", lines[0]),
            ("measured, on the test images", lines[1]),
        ],
        x=charts.Axis("false alarms, share of good images", 0, end),
        y=charts.Axis("defects found, share", 0, 1),
        marks=marks,
    )


def _sheet_path(folder: Path | None) -> Path | None:
    path = folder / "contact_sheet.png" if folder is not None else None
    return path if path is not None and path.is_file() else None


def _training_charts(folder: Path | None) -> list[tuple[str, str]]:
    """A chart per column of the losses and of the trials that weights were selected by."""
    if folder is None:
        return []
    trials = [(f"{name} {_TRIED_ON}", chart) for name, chart in _chart(folder / "selection.csv")]
    return _chart(folder / "curves.csv") + trials


def _chart(path: Path) -> list[tuple[str, str]]:
    """A chart per column of a table, over its first column."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if len(rows) < 2:
        return []
    rows = rows[:: max(1, len(rows) // _CURVE_POINTS)]
    first, *others = (name for name in rows[0] if name != "epoch")
    drawn = []
    for name in others:
        points = [(float(row[first]), float(row[name])) for row in rows if row[name]]
        if len(points) < 2:
            continue
        x = charts.Axis(first, points[0][0], points[-1][0])
        y = charts.Axis(name, min(0.0, *(v for _, v in points)), max(v for _, v in points))
        drawn.append((name, charts.draw_curves([(name, points)], x=x, y=y)))
    return drawn


def _head(
    metrics: Mapping[str, Any], detector: Detector | None, decision: Decision
) -> list[tuple[str, str]]:
    """Lines of the head: which model, on which data, and what the person who signs must know."""
    lines = [*decision.facts]
    if digest := detector.digest if detector else metrics.get("model_digest"):
        lines.append(("Model (sha256)", digest))
    lines.append(("Data version", metrics.get("data_version") or "not versioned by DVC"))
    if normals := metrics.get("training_normals"):
        lines.append(("Training normals", f"{sum(normals.values())} images"))
    images = metrics.get("images", {}).values()
    good, bad = (sum(one[kind] for one in images) for kind in ("good", "defective"))
    lines.append(("Test images", f"{good} good, {bad} defective"))
    return lines


def _facts(metrics: Mapping[str, Any], detector: Detector | None) -> list[tuple[str, str]]:
    facts = [
        ("Data version (data.dvc)", metrics.get("data_version") or "not versioned by DVC"),
        ("Manifest (sha256)", str(metrics.get("manifest_sha256", ""))),
        ("Pixels compared at", f"{metrics.get('resolution', '')} size"),
    ]
    if detector is None:
        return facts
    facts.append(("Model (sha256 of its files)", detector.digest))
    provenance = detector.spec.provenance
    facts += [
        (key.replace("_", " "), f"{value:.4f}" if isinstance(value, float) else str(value))
        for key, value in sorted(provenance.items())
        if isinstance(value, str | int | float)
    ]
    return facts
