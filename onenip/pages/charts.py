"""Charts in Vega-Lite, which follow the page's light or dark theme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from onenip.detector.prediction import Verdict
from onenip.model.file import OperatingPoint
from onenip.pages.common import VERDICT_COLOURS

_BLUE, _ORANGE, _GREY = "#3b82f6", "#f59e0b", "#94a3b8"


def draw_score(
    score: float, threshold: float, normal_scores: Sequence[float], *, verdict: Verdict
) -> None:
    """The score and the threshold above the histogram of the scores of normal images."""
    bars = {
        "data": {"values": [{"score": one} for one in normal_scores]},
        "mark": {"type": "bar", "color": _GREY},
        "encoding": {
            "x": {
                "field": "score",
                "bin": {"maxbins": 14},
                "title": f"image score, among those of {len(normal_scores)} normals",
            },
            "y": {"aggregate": "count", "title": None},
        },
    }
    lines = [
        _rule(threshold, "threshold", colour=_ORANGE, dash=[5, 3]),
        _rule(score, "this image", colour=VERDICT_COLOURS[verdict], dash=[]),
    ]
    _show([bars, *lines], height=140)


def draw_operating_points(
    curve: Sequence[OperatingPoint],
    measured: Sequence[tuple[float, float]],
    chosen: Mapping[str, OperatingPoint],
) -> None:
    """What thresholds promise, what they do on the test images, and the points that are named.

    Args:
        curve: promises of the model's thresholds.
        measured: (false-alarm rate, recall) on the test images; empty without any.
        chosen: points by name.
    """
    promised = "promised (synthetic anomalies)"
    rows = [
        {"x": one.false_alarm_rate, "y": one.synthetic_recall, "what": promised}
        for one in curve
        if one.synthetic_recall is not None
    ]
    rows += [{"x": x, "y": y, "what": "measured (test images)"} for x, y in measured if x <= 0.5]
    points = [
        {"x": one.false_alarm_rate, "y": one.synthetic_recall, "point": name}
        for name, one in chosen.items()
        if one.synthetic_recall is not None
    ]
    axes = {
        "x": {
            "field": "x",
            "type": "quantitative",
            "title": "false alarms, share of good images",
            "axis": {"format": "%"},
        },
        "y": {
            "field": "y",
            "type": "quantitative",
            "title": "defects found",
            "scale": {"domain": [0, 1]},
            "axis": {"format": "%"},
        },
    }
    # a row for each: side by side the last entry is cut
    legend = {"title": None, "labelLimit": 0, "columns": 1}
    colour = {"scale": {"range": [_BLUE, _ORANGE]}, "legend": {"orient": "top", **legend}}
    line = {
        "data": {"values": rows},
        "mark": {"type": "line", "strokeWidth": 2.5},
        "encoding": {**axes, "order": {"field": "x"}, "color": {"field": "what", **colour}},
    }
    dots = {
        "data": {"values": points},
        "mark": {"type": "point", "filled": True, "size": 130, "color": "#dc2626"},
        "encoding": {
            **axes,
            "shape": {"field": "point", "legend": {"orient": "bottom", **legend}},
        },
    }
    _show([line, dots], height=300)


def _rule(value: float, title: str, *, colour: str, dash: list[int]) -> dict[str, Any]:
    return {
        "data": {"values": [{"score": value, "what": f"{title} {value:.2f}"}]},
        "mark": {"type": "rule", "strokeWidth": 3, "strokeDash": dash, "color": colour},
        "encoding": {
            "x": {"field": "score", "type": "quantitative"},
            "tooltip": {"field": "what"},
        },
    }


def _show(layers: Sequence[Mapping[str, Any]], *, height: int) -> None:
    st.vega_lite_chart(spec={"layer": list(layers), "height": height}, width="stretch")
