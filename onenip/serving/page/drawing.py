"""The chart of a score among the scores of normal images."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from onenip.detector.prediction import Verdict

_GREY = "#64748b"
VERDICT_COLOURS: dict[Verdict, str] = {
    "normal": "#15803d",
    "review": "#b45309",
    "anomalous": "#b91c1c",
    "unsure": _GREY,
}


def draw_score(
    score: float, threshold: float, normal_scores: Sequence[float], *, verdict: Verdict
) -> Figure:
    """The score and the threshold above the histogram of the scores of normal images."""
    figure = Figure(figsize=(4.6, 1.6), dpi=160, layout="constrained")
    axes = figure.subplots()
    colour = VERDICT_COLOURS[verdict]
    axes.hist(normal_scores, bins=12, color="#cbd5e1", label=f"{len(normal_scores)} normal images")
    axes.axvline(threshold, color=_GREY, linestyle="--", linewidth=1.5, label="threshold")
    axes.axvline(score, color=colour, linewidth=2.5, label="this image")
    axes.set_yticks([])
    axes.tick_params(labelsize=8, colors=_GREY)
    axes.set_xlabel("image score", fontsize=8, color=_GREY)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=3, fontsize=8, frameon=False)
    return figure
