"""Random fields and shapes that textures and synthetic anomalies are made of.

Pure numpy: every function takes its generator and returns an array.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Field = NDArray[np.float32]
Mask = NDArray[np.bool_]


def draw_perlin(size: tuple[int, int], periods: tuple[int, int], rng: np.random.Generator) -> Field:
    """Perlin gradient noise.

    Args:
        size: (H, W) in px.
        periods: noise periods over the height and the width.
        rng: source of the gradients.

    Returns:
        [H, W] float32, roughly -1..1, mean near 0.

    Source: Perlin 1985, with the quintic fade of Perlin 2002.
    """
    angles = rng.uniform(0, 2 * np.pi, (periods[0] + 1, periods[1] + 1)).astype(np.float32)
    gradient_y, gradient_x = np.sin(angles), np.cos(angles)  # float32
    row, y = _split_axis(size[0], periods[0])
    column, x = _split_axis(size[1], periods[1])
    fade_y, fade_x = _fade(y)[:, None], _fade(x)[None]

    def corner(dy: int, dx: int) -> Field:
        slope_y = gradient_y[:, column + dx][row + dy]
        slope_x = gradient_x[:, column + dx][row + dy]
        value = slope_y * (y - dy)[:, None] + slope_x * (x - dx)[None]  # in double precision
        return value.astype(np.float32)

    top = corner(0, 0) * (1 - fade_x) + corner(0, 1) * fade_x
    bottom = corner(1, 0) * (1 - fade_x) + corner(1, 1) * fade_x
    noise: Field = (np.sqrt(2) * (top * (1 - fade_y) + bottom * fade_y)).astype(np.float32)
    return noise


def draw_blob(
    size: tuple[int, int],
    area_px: float,
    rng: np.random.Generator,
    *,
    aspect: float = 1.0,
    roughness: float = 0.3,
) -> Mask:
    """A closed irregular shape, filled.

    Args:
        size: (H, W) in px of the canvas that the shape lies in, centred.
        area_px: about how many pixels it covers.
        rng: source of the outline.
        aspect: length over breadth.
        roughness: how far the outline strays from an ellipse, as a share of the radius.

    Returns:
        [H, W] bool.
    """
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = np.ones_like(angles)
    for harmonic in range(2, 7):
        phase, weight = rng.uniform(0, 2 * np.pi), rng.normal() * roughness / harmonic
        radius += weight * np.sin(harmonic * angles + phase)
    radius = np.clip(radius, 0.3, 2.0) * np.sqrt(area_px / np.pi)
    turn = rng.uniform(0, np.pi)
    x = radius * np.cos(angles) * np.sqrt(aspect)
    y = radius * np.sin(angles) / np.sqrt(aspect)
    points = np.stack(
        [
            x * np.cos(turn) - y * np.sin(turn) + size[1] / 2,
            x * np.sin(turn) + y * np.cos(turn) + size[0] / 2,
        ],
        axis=1,
    )
    canvas = Image.new("L", (size[1], size[0]))
    ImageDraw.Draw(canvas).polygon([(float(px), float(py)) for px, py in points], fill=255)
    return np.asarray(canvas) > 0


def draw_stroke(
    size: tuple[int, int], length_px: float, width_px: float, rng: np.random.Generator
) -> Mask:
    """A thin wandering line, such as a crack or a scratch.

    Args:
        size: (H, W) in px of the canvas; the line starts near its middle.
        length_px: length along the line.
        width_px: its breadth, which varies along the way.
        rng: source of the path.

    Returns:
        [H, W] bool.
    """
    steps = max(int(length_px / 4), 2)
    bend = rng.uniform(0.0, 0.35)
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, bend, steps))
    path = np.stack([np.cos(heading), np.sin(heading)], axis=1).cumsum(axis=0) * 4
    path = path - path.mean(axis=0) + np.array([size[1] / 2, size[0] / 2])
    canvas = Image.new("L", (size[1], size[0]))
    draw = ImageDraw.Draw(canvas)
    for start, stop in itertools.pairwise(path):
        breadth = max(round(width_px * rng.uniform(0.6, 1.2)), 1)
        ends = [(float(start[0]), float(start[1])), (float(stop[0]), float(stop[1]))]
        draw.line(ends, fill=255, width=breadth)
    return np.asarray(canvas) > 0


def soften(mask: Mask, radius_px: float) -> Field:
    """A mask with a soft edge inside: [H, W] float32, 0..1, zero wherever the mask is False."""
    if radius_px <= 0:
        return mask.astype(np.float32)
    blurred = Image.fromarray(mask.astype(np.uint8) * 255).filter(
        ImageFilter.GaussianBlur(radius_px)
    )
    return (np.asarray(blurred, np.float32) / 255 * mask).astype(np.float32)


def _split_axis(length: int, periods: int) -> tuple[NDArray[np.intp], Field]:
    position = np.arange(length, dtype=np.float32) * (periods / length)
    cell = position.astype(np.intp)
    return cell, position - cell


def _fade(t: Field) -> Field:
    return t * t * t * (t * (t * 6 - 15) + 10)
