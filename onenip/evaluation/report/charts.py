"""Curves and histograms as inline SVG; colours come from the page's style, light and dark.

All charts share a frame of 320 x 220 units with room for labels at the left and below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 320, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 12, 10, 40
_TICKS = 5

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """One axis: its label and its range."""

    label: str
    low: float
    high: float

    def place(self, value: float) -> float:
        """Position of a value, 0 at the low end, 1 at the high one."""
        span = self.high - self.low
        return (value - self.low) / span if span else 0.5

    @property
    def ticks(self) -> list[float]:
        """Evenly spread values that are labelled."""
        step = (self.high - self.low) / (_TICKS - 1)
        return [self.low + step * at for at in range(_TICKS)]


def draw_curves(
    curves: Sequence[tuple[str, Sequence[Point]]],
    *,
    x: Axis,
    y: Axis,
    marks: Sequence[tuple[str, Point]] = (),
) -> str:
    """Lines, each named by its tooltip and coloured by its position.

    Args:
        curves: name and points of each, within the axes.
        x: the horizontal axis.
        y: the vertical axis.
        marks: name and place of points to mark, coloured by their position.
    """
    lines = [
        f'<polyline class="series s{at % 8}" points="{_to_points(points, x, y)}">'
        f"<title>{escape(name)}</title></polyline>"
        for at, (name, points) in enumerate(curves)
    ]
    dots = [
        f'<circle class="mark m{at % 8}" cx="{_to_x(x.place(px)):.1f}" cy="{_to_y(y.place(py)):.1f}" r="5">'
        f"<title>{escape(name)}</title></circle>"
        for at, (name, (px, py)) in enumerate(marks)
    ]
    return _frame("".join(lines + dots), x=x, y=y)


def draw_histogram(
    bins: Sequence[tuple[float, float, int, int]], *, threshold: float | None, label: str
) -> str:
    """Good and defective images per bin of score, with the threshold as a line.

    Args:
        bins: score from, score to, good images, defective images.
        threshold: the decision threshold; None if there is none.
        label: of the horizontal axis.
    """
    low, high = bins[0][0], bins[-1][1]
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    x = Axis(label, low, high)
    most = max(1, *(max(good, bad) for _, _, good, bad in bins))
    y = Axis("images", 0, -(-most // (_TICKS - 1)) * (_TICKS - 1))
    parts = []
    for start, stop, good, bad in bins:
        left, right = _to_x(x.place(start)), _to_x(x.place(stop))
        for kind, count in (("good", good), ("defective", bad)):
            top = _to_y(y.place(count))
            parts.append(
                f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" '
                f'width="{max(right - left - 0.5, 1):.1f}" height="{_to_y(0) - top:.1f}"/>'
            )
    if threshold is not None:
        at = _to_x(x.place(threshold))
        parts.append(
            f'<line class="threshold" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_to_y(0):.1f}">'
            f"<title>threshold {threshold:.4g}</title></line>"
        )
    return _frame("".join(parts), x=x, y=y)


def _to_x(place: float) -> float:
    return _LEFT + place * (WIDTH - _LEFT - _RIGHT)


def _to_y(place: float) -> float:
    return HEIGHT - _BOTTOM - place * (HEIGHT - _TOP - _BOTTOM)


def _to_points(points: Sequence[Point], x: Axis, y: Axis) -> str:
    return " ".join(f"{_to_x(x.place(px)):.1f},{_to_y(y.place(py)):.1f}" for px, py in points)


def _frame(inner: str, *, x: Axis, y: Axis) -> str:
    marks = []
    for value in x.ticks:
        at = _to_x(x.place(value))
        marks.append(
            f'<text class="tick" x="{at:.1f}" y="{HEIGHT - _BOTTOM + 15}" '
            f'text-anchor="middle">{value:.3g}</text>'
        )
    for value in y.ticks:
        at = _to_y(y.place(value))
        marks.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 5}" y="{at + 3.5:.1f}" '
            f'text-anchor="end">{value:.3g}</text>'
        )
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    height = (_TOP + HEIGHT - _BOTTOM) / 2
    labels = (
        f'<text class="label" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(x.label)}</text>"
        f'<text class="label" transform="translate(11 {height}) rotate(-90)" '
        f'text-anchor="middle">{escape(y.label)}</text>'
    )
    name = escape(f"{y.label} against {x.label}")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">'
        f"{''.join(marks)}{inner}{labels}</svg>"
    )
