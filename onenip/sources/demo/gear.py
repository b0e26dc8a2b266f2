"""A turned steel gear on a rubber mat."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from onenip.sources.demo.scene import (
    SIZE,
    Plane,
    Product,
    cover,
    draw_cloud,
    draw_line,
    draw_spot,
    make_grid,
)

TEETH = 16
RADIUS = 178.0  # px, of the pitch circle
HOLE = 46.0
RUST = np.array([0.36, 0.18, 0.07], np.float32)


def draw(rng: np.random.Generator) -> Product:
    """A normal gear."""
    centre = (SIZE / 2 + rng.normal(0, 5), SIZE / 2 + rng.normal(0, 5))
    turn = rng.uniform(-0.2, 0.2)
    radius, angle = _polar(centre, turn)
    flank = np.tanh(2.6 * np.cos(TEETH * angle))
    outline = cover(RADIUS + 17 * flank - radius)
    hole = cover(HOLE - radius)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    keyway = cover(np.minimum(9 - np.abs(y), np.minimum(x, HOLE + 16 - x)))
    alpha = outline * (1 - np.maximum(hole, keyway))
    for spoke in range(5):
        at = 2 * np.pi * (spoke + 0.5) / 5
        alpha = alpha * (1 - cover(23 - np.hypot(x - 104 * np.cos(at), y - 104 * np.sin(at))))
    mat = 0.17 + 0.012 * draw_cloud(rng, 6) + 0.02 * rng.normal(size=(SIZE, SIZE))
    background = mat[:, :, None] * np.array([0.95, 1.0, 1.08])
    return Product(
        background.astype(np.float32),
        _turn_steel(rng, radius, angle + turn),
        alpha.astype(np.float32),
        thickness_px=9.0,
        turn=turn,
        centre=centre,
    )


def scratch(product: Product, rng: np.random.Generator) -> Product:
    """A bright groove with a dark lip across the face."""
    start, heading = _point(product, rng, (80, 150)), rng.uniform(0, 2 * np.pi)
    length, width = rng.uniform(70, 150), rng.uniform(2.5, 5)
    line = draw_line(rng, start, heading, length, width)
    lip = np.roll(line, (2, 2), axis=(0, 1)) * (1 - line)
    shade = 1 + rng.uniform(0.35, 0.6) * line - 0.55 * lip
    return product.with_surface(product.surface * shade[:, :, None])


def broken_tooth(product: Product, rng: np.random.Generator) -> Product:
    """One or two teeth broken off, with a rough edge."""
    tooth = int(rng.integers(TEETH))
    radius, angle = _polar(product.centre, product.turn)
    at = 2 * np.pi * tooth / TEETH
    apart = np.abs(np.angle(np.exp(1j * (angle - at)))) * RADIUS
    reach = rng.choice([30.0, 62.0], p=[0.7, 0.3])
    rough = 4 * draw_cloud(rng, 60)
    gone = cover(np.minimum(radius - (RADIUS - 13) + rough, reach - apart + rough))
    return product.with_alpha(product.alpha * (1 - gone))


def rust(product: Product, rng: np.random.Generator) -> Product:
    """A patch of rust."""
    spot = draw_spot(rng, _point(product, rng, (70, 160)), rng.uniform(15, 38))
    speckle = np.clip(0.75 + 0.3 * draw_cloud(rng, 120), 0, 1)
    weight = (spot * speckle * rng.uniform(0.6, 0.95))[:, :, None]
    colour = RUST * (1 + 0.25 * draw_cloud(rng, 90))[:, :, None]
    return product.with_surface(product.surface * (1 - weight) + colour * weight)


DEFECTS = {"scratch": scratch, "broken_tooth": broken_tooth, "rust": rust}


def _turn_steel(rng: np.random.Generator, radius: Plane, angle: Plane) -> Plane:
    marks = ndimage.gaussian_filter1d(rng.normal(size=SIZE), 0.8)
    grooves = np.interp(radius, np.arange(SIZE), marks)
    glint = np.abs(np.cos(angle - np.deg2rad(rng.normal(40, 5)))) ** 5
    hub = 0.07 * (cover(74 - radius) - cover(70 - radius)) - 0.04 * cover(70 - radius)
    value = 0.5 + 0.17 * glint + 0.05 * grooves * (0.4 + glint) + hub + 0.012 * draw_cloud(rng, 40)
    steel: Plane = (value[:, :, None] * np.array([0.98, 1.0, 1.03])).astype(np.float32)
    return steel


def _polar(centre: tuple[float, float], turn: float) -> tuple[Plane, Plane]:
    y, x = make_grid()
    dy, dx = y - np.float32(centre[0]), x - np.float32(centre[1])
    return np.hypot(dx, dy), (np.arctan2(dy, dx) - np.float32(turn)).astype(np.float32)


def _point(
    product: Product, rng: np.random.Generator, ring: tuple[float, float]
) -> tuple[float, float]:
    while True:
        radius, angle = rng.uniform(*ring), rng.uniform(0, 2 * np.pi)
        y = product.centre[0] + radius * np.sin(angle)
        x = product.centre[1] + radius * np.cos(angle)
        if product.alpha[int(y), int(x)] > 0.5:
            return y, x
