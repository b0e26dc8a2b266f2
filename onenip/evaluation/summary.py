"""The content of `metrics.json`: figures per category and mean, with intervals and reasons.

    {"verdicts": {<category>: {"missed": ..., "defective": ..., "false_alarms": ..., "good": ...}},
     "mean": {<figure>: 0..1 | null}, "categories": {<category>: {...}},
     "intervals": {"mean": {<figure>: [low, high] | null}, "categories": {...}},
     "reasons": {"mean": {<figure>: why null, or of which categories}, "categories": {...}},
     "defects": {<category>: [{"defect": ..., "images": ..., <figure>: ...}, ...]},
     "thresholds": {<category>: {"image": ..., "pixel": ...}}, "images": {<category>: {...}},
     "original": {<category>: counts and figures of images, without those that people added since},
     "doubts": {<category>: [labels that may be wrong, in words]},
     "confidence": ..., "resolution": ..., "data_version": ..., "model_digest": ...}

Intervals of verdict figures are exact (Clopper-Pearson), those of the others bootstrapped. The few figures
that DVC shows are in `overview.json`. The same inputs give the same bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onenip.detector.thresholds import binomial_interval
from onenip.evaluation.category import CategorySummary
from onenip.evaluation.metrics import (
    NAMES,
    PIXEL_NAMES,
    VERDICT_NAMES,
    Figure,
    Undefined,
    mean_figure,
    resampling,
)

_MIN_DOUBTED = 3  # images of a kind of defect, below which chance explains much
_ALIKE_AUROC = 0.7  # below it a kind of defect is hardly told from normal images
_ALIKE_MISSED = 0.8  # share of them called normal


def describe(
    summaries: Mapping[str, CategorySummary],
    defects: Mapping[str, Mapping[str, CategorySummary]],
    *,
    thresholds: Mapping[str, tuple[float, float]],
    confidence: float,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Content of `metrics.json`.

    Args:
        summaries: per category.
        defects: per category and kind of defect.
        thresholds: image and pixel threshold per category.
        confidence: of the intervals.
        extra: further top-level values, such as the data version.
    """
    names = sorted(summaries)
    mean: dict[str, Figure] = {}
    notes: dict[str, str] = {}
    for name in NAMES:
        values = {category: summaries[category].figures[name] for category in names}
        mean[name], note = mean_figure(values)
        if note:
            notes[name] = note
    return {
        "verdicts": {name: summaries[name].verdicts.to_dict() for name in names},
        "mean": to_values(mean),
        "categories": {name: to_values(summaries[name].figures) for name in names},
        "intervals": {
            "mean": _mean_intervals(summaries, confidence=confidence),
            "categories": {
                name: _intervals(summaries[name], confidence=confidence) for name in names
            },
        },
        "reasons": {
            "mean": notes,
            "categories": {name: _reasons(summaries[name]) for name in names},
        },
        "defects": {
            name: [_describe_defect(kind, defects[name][kind]) for kind in sorted(defects[name])]
            for name in sorted(defects)
        },
        "doubts": {name: _doubt_labels(defects[name]) for name in sorted(defects)},
        "thresholds": {
            name: {"image": _to_json(image), "pixel": _to_json(pixel)}
            for name, (image, pixel) in sorted(thresholds.items())
        },
        "images": {
            name: {
                "good": summaries[name].verdicts.good,
                "defective": summaries[name].verdicts.defective,
                "without_mask": summaries[name].unmasked,
            }
            for name in names
        },
        "confidence": confidence,
        **extra,
    }


def summarise(content: Mapping[str, Any]) -> dict[str, float | int | None]:
    """The few figures that `dvc metrics show` prints on one line: wrong verdicts, and means.

    Args:
        content: of `metrics.json`.
    """
    verdicts, mean = content["verdicts"].values(), content["mean"]
    counts = {name: sum(row[name] for row in verdicts) for name in ("missed", "false_alarms")}
    return counts | {name: _round(mean[name]) for name in ("image_auroc", "pixel_ap", "aupro")}


def write_metrics(path: Path, content: Mapping[str, Any]) -> None:
    """Write `metrics.json`, in the order of its keys."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _to_json(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def to_values(figures: Mapping[str, Figure]) -> dict[str, float | None]:
    """Figures as they are written; None where one is not defined."""
    return {
        name: None if isinstance(value, Undefined) else value for name, value in figures.items()
    }


def _reasons(summary: CategorySummary) -> dict[str, str]:
    reasons = {
        name: value.reason
        for name, value in summary.figures.items()
        if isinstance(value, Undefined)
    }
    if summary.unmasked and summary.unmasked < summary.verdicts.defective:
        text = f"{summary.unmasked} defective images without a mask are left out"
        for name in PIXEL_NAMES:
            reasons.setdefault(name, text)
    return reasons


def _intervals(summary: CategorySummary, *, confidence: float) -> dict[str, list[float] | None]:
    resampled = {
        name: _to_pair(summary.replicates.get(name), confidence=confidence)
        for name in NAMES
        if name not in VERDICT_NAMES
    }
    found = summary.verdicts
    caught, quiet = found.defective - found.missed, found.good - found.false_alarms
    counts = {
        "accuracy": (caught + quiet, found.defective + found.good),
        "recall": (caught, found.defective),
        "false_alarm_rate": (found.false_alarms, found.good),
    }
    exact = {
        name: list(binomial_interval(*pair, confidence=confidence)) if pair[1] else None
        for name, pair in counts.items()
    }
    return {name: {**resampled, **exact}[name] for name in NAMES}


def _mean_intervals(
    summaries: Mapping[str, CategorySummary], *, confidence: float
) -> dict[str, list[float] | None]:
    """Intervals of the means: the mean of one draw from each category, draw by draw.

    Of verdict figures: the means of the categories' ends, which is wider than need be, but never empty.
    """
    intervals = {}
    for name in NAMES:
        if name in VERDICT_NAMES:
            every = [_intervals(one, confidence=confidence)[name] for one in summaries.values()]
            ends = [pair for pair in every if pair is not None]
            intervals[name] = np.mean(ends, axis=0).tolist() if ends else None
            continue
        parts = [
            summaries[category].replicates[name]
            for category in sorted(summaries)
            if not isinstance(summaries[category].figures[name], Undefined)
            and name in summaries[category].replicates
        ]
        mean = np.mean(parts, axis=0) if parts else None
        intervals[name] = _to_pair(mean, confidence=confidence)
    return intervals


def _to_pair(replicates: resampling.Replicates | None, *, confidence: float) -> list[float] | None:
    ends = None if replicates is None else resampling.interval(replicates, confidence=confidence)
    return None if ends is None else list(ends)


def _doubt_labels(defects: Mapping[str, CategorySummary]) -> list[str]:
    """Kinds of defects that nobody drew masks of and that score as normal images do: are they defects?"""
    doubts = []
    for kind, found in sorted(defects.items()):
        count, area = found.verdicts.defective, found.figures["image_auroc"]
        is_alike = isinstance(area, Undefined) or area < _ALIKE_AUROC
        if count >= _MIN_DOUBTED and found.unmasked == count and is_alike:
            missed = found.verdicts.missed
            if missed >= _ALIKE_MISSED * count:
                doubts.append(
                    f"The {count} test images called {kind} have no mask, and {missed} score as normal "
                    "ones do; if they are normal, lay them into test/good"
                )
    return doubts


def _describe_defect(kind: str, summary: CategorySummary) -> dict[str, Any]:
    return {
        "defect": kind,
        "images": summary.verdicts.defective,
        "missed": summary.verdicts.missed,
        "without_mask": summary.unmasked,
        **to_values(summary.figures),
    }
