"""A twill of two yarns, filling the picture."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from onenip.sources.demo.scene import (
    SIZE,
    Plane,
    Product,
    draw_cloud,
    draw_line,
    draw_spot,
    make_grid,
)

PERIOD = 16.0  # px from thread to thread
WARP = np.array([0.20, 0.29, 0.45], np.float32)
WEFT = np.array([0.74, 0.70, 0.60], np.float32)
MARGIN = 90


def draw(rng: np.random.Generator) -> Product:
    """A normal piece of cloth."""
    turn = rng.normal(0, 0.035)
    u, v = _thread_coordinates(rng, turn)
    surface = _weave(rng, u, v)
    below = np.full((SIZE, SIZE, 3), 0.05, np.float32)
    ones = np.ones((SIZE, SIZE), np.float32)
    return Product(below, surface, ones, thickness_px=0.0, turn=turn)


def hole(product: Product, rng: np.random.Generator) -> Product:
    """A hole with a frayed rim."""
    radius = rng.uniform(14, 30)
    spot = draw_spot(rng, _point(rng), radius)
    rim = ndimage.gaussian_filter(spot, 5) * (1 - spot)
    frayed = product.surface * (1 + 0.6 * rim[:, :, None])
    return product.with_surface(frayed).with_alpha(product.alpha * (1 - spot))


def oil(product: Product, rng: np.random.Generator) -> Product:
    """A stain of oil that darkens the yarn and leaves the weave visible."""
    spot = draw_spot(rng, _point(rng), rng.uniform(26, 55))
    spot = ndimage.gaussian_filter(spot, 3)[:, :, None]
    tint = np.array([0.62, 0.52, 0.36], np.float32) * rng.uniform(0.75, 1.05)
    return product.with_surface(product.surface * (1 - spot + spot * tint))


def pulled_thread(product: Product, rng: np.random.Generator) -> Product:
    """A loose bright thread lying on the cloth, with its shadow."""
    y, x = _point(rng)
    along = product.turn + rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.25)
    length = rng.uniform(110, 210)
    start = (y - np.sin(along) * length / 2, x - np.cos(along) * length / 2)
    line = draw_line(rng, start, along, length, rng.uniform(6, 9))
    shadow = np.roll(ndimage.gaussian_filter(line, 2), (4, 4), axis=(0, 1)) * (1 - line)
    yarn = (0.82 + 0.05 * draw_cloud(rng, 100))[:, :, None] * np.array([1.0, 0.97, 0.9])
    surface = product.surface * (1 - 0.6 * shadow[:, :, None])
    return product.with_surface(surface * (1 - line[:, :, None]) + yarn * line[:, :, None])


DEFECTS = {"hole": hole, "oil": oil, "pulled_thread": pulled_thread}


def _thread_coordinates(rng: np.random.Generator, turn: float) -> tuple[Plane, Plane]:
    y, x = make_grid()
    scale = PERIOD * rng.normal(1, 0.012)
    drape_u, drape_v = 3 * draw_cloud(rng, 5), 3 * draw_cloud(rng, 5)
    u = (x * np.cos(turn) + y * np.sin(turn) + drape_u) / scale + rng.uniform(0, 4)
    v = (-x * np.sin(turn) + y * np.cos(turn) + drape_v) / scale + rng.uniform(0, 4)
    return u.astype(np.float32), v.astype(np.float32)


def _weave(rng: np.random.Generator, u: Plane, v: Plane) -> Plane:
    column, row = np.floor(u).astype(int), np.floor(v).astype(int)
    warp_on_top = (column + row) % 4 < 2
    across = np.where(warp_on_top, u - column, v - row) - 0.5
    along = np.where(warp_on_top, v - row, u - column) - 0.5
    round_off = np.sqrt(np.clip(1 - (1.85 * across) ** 2, 0.02, 1))
    fibre = 0.10 * np.sin(2 * np.pi * (2.2 * across + 1.6 * along))
    shade = round_off * (0.92 + fibre) * (1 - 0.35 * along**2)
    uneven = rng.normal(1, 0.05, (2, 64))
    own = np.where(warp_on_top, uneven[0][column % 64], uneven[1][row % 64])
    colour = np.where(warp_on_top[:, :, None], WARP, WEFT)
    fuzz = 1 + 0.05 * draw_cloud(rng, 256) + 0.03 * draw_cloud(rng, 8)
    cloth: Plane = (colour * (shade * own * fuzz)[:, :, None]).astype(np.float32)
    return cloth


def _point(rng: np.random.Generator) -> tuple[float, float]:
    y, x = rng.uniform(MARGIN, SIZE - MARGIN, 2)
    return float(y), float(x)
