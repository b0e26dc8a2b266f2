"""A product on a background, and the photo that a camera takes of it.

Works at twice the size of the photo. A defect is a changed product: photographing both with the same
camera gives the exact mask.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

SIZE = 512  # px, side of the canvas
PHOTO_SIZE = 256  # px, side of the photo
VISIBLE_LEVELS = 6  # smallest change of a channel, of 255, that counts as a defect

Plane = NDArray[np.float32]
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Product:
    """One product, as layers.

    Attributes:
        background: [SIZE, SIZE, 3] float32, RGB, 0..1.
        surface: the product's own colour, same layout.
        alpha: [SIZE, SIZE] float32, 0..1, where the product is.
        thickness_px: how far its shadow falls, and how broad its bevel is; 0: flat.
        turn: radians by which it is turned.
        centre: (y, x) in px.
    """

    background: Plane
    surface: Plane
    alpha: Plane
    thickness_px: float
    turn: float = 0.0
    centre: tuple[float, float] = (SIZE / 2, SIZE / 2)

    def with_surface(self, surface: NDArray[np.floating]) -> Self:
        """The same product with another surface."""
        return replace(self, surface=surface.astype(np.float32))

    def with_alpha(self, alpha: NDArray[np.floating]) -> Self:
        """The same product with another outline."""
        return replace(self, alpha=alpha.astype(np.float32))


@dataclass(frozen=True)
class Camera:
    """Light and sensor of one photo."""

    light_angle: float
    light: Plane  # [SIZE, SIZE], factor of brightness
    tint: Plane  # [3]
    noise: Plane  # [PHOTO_SIZE, PHOTO_SIZE, 3]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Camera:
        """A camera with its own light, a little unlike the last one."""
        y, x = make_grid()
        angle = np.deg2rad(rng.normal(225, 12))
        slope = (np.cos(angle) * (x - SIZE / 2) + np.sin(angle) * (y - SIZE / 2)) / SIZE
        fall = ((x - SIZE / 2) ** 2 + (y - SIZE / 2) ** 2) / SIZE**2
        light = rng.normal(1.0, 0.045) * (1 + rng.uniform(0.1, 0.22) * slope - 0.28 * fall)
        grain = rng.normal(0, 0.011, (PHOTO_SIZE, PHOTO_SIZE, 3))
        return cls(
            float(angle),
            light.astype(np.float32),
            (1 + rng.normal(0, 0.012, 3)).astype(np.float32),
            grain.astype(np.float32),
        )

    def photograph(self, product: Product) -> Picture:
        """[PHOTO_SIZE, PHOTO_SIZE, 3] uint8, RGB."""
        ground, surface, alpha = product.background, product.surface, product.alpha[:, :, None]
        if product.thickness_px > 0:
            away = (np.sin(self.light_angle), np.cos(self.light_angle))
            reach = product.thickness_px
            soft = ndimage.gaussian_filter(product.alpha, reach * 0.7, truncate=2.5)
            shadow = ndimage.shift(soft, (-away[0] * reach, -away[1] * reach), order=0)
            ground = ground * (1 - 0.55 * shadow[:, :, None])
            edge = ndimage.gaussian_filter(product.alpha, reach * 0.3, truncate=2.5)
            slope_y, slope_x = np.gradient(edge)
            bevel = -(away[0] * slope_y + away[1] * slope_x) * reach * 0.55
            surface = surface * (1 + np.clip(bevel, -0.6, 0.8)[:, :, None])
        scene = (ground * (1 - alpha) + surface * alpha) * self.light[:, :, None] * self.tint
        half = scene.reshape(PHOTO_SIZE, 2, PHOTO_SIZE, 2, 3).mean(axis=(1, 3))
        shot = half + self.noise * (0.6 + half)
        return np.clip(np.rint(shot * 255), 0, 255).astype(np.uint8)


def photograph_defect(
    camera: Camera, normal: Product, defective: Product
) -> tuple[Picture, NDArray[np.bool_]]:
    """Photo of a defective product, and exactly the pixels at which it differs from the normal one."""
    before, after = camera.photograph(normal), camera.photograph(defective)
    change = np.abs(before.astype(np.int16) - after).max(axis=2)
    mask = change >= VISIBLE_LEVELS
    return np.where(mask[:, :, None], after, before), mask


def make_grid() -> tuple[Plane, Plane]:
    """Pixel coordinates (y, x), each [SIZE, SIZE] float32."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    return y, x


def draw_cloud(rng: np.random.Generator, cells: int | tuple[int, int]) -> Plane:
    """Smooth noise with so many cells over the canvas: [SIZE, SIZE] float32, standard normal or less."""
    shape = (cells, cells) if isinstance(cells, int) else cells
    coarse = Image.fromarray(rng.normal(size=shape).astype(np.float32))
    return np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def cover(signed_distance: NDArray[np.floating]) -> Plane:
    """Antialiased coverage of a shape from distances in px, positive inside."""
    return np.clip(signed_distance + 0.5, 0, 1).astype(np.float32)


def draw_spot(rng: np.random.Generator, at: tuple[float, float], radius_px: float) -> Plane:
    """An irregular spot with a soft rim around (y, x): [SIZE, SIZE] float32, 0..1."""
    y, x = make_grid()
    stretch, turn = rng.uniform(0.7, 1.4), rng.uniform(0, np.pi)
    dy, dx = y - at[0], x - at[1]
    along = dx * np.cos(turn) + dy * np.sin(turn)
    across = -dx * np.sin(turn) + dy * np.cos(turn)
    distance = radius_px - np.hypot(along * stretch, across / stretch)
    wobble = radius_px * (0.28 * draw_cloud(rng, 24) + 0.1 * draw_cloud(rng, 80))
    return np.clip((distance + wobble) / (0.25 * radius_px) + 0.5, 0, 1).astype(np.float32)


def draw_line(
    rng: np.random.Generator,
    start: tuple[float, float],
    angle: float,
    length_px: float,
    width_px: float,
) -> Plane:
    """A slightly bent line from (y, x) that thins out: [SIZE, SIZE] float32, 0..1."""
    y, x = make_grid()
    along = (x - start[1]) * np.cos(angle) + (y - start[0]) * np.sin(angle)
    across = -(x - start[1]) * np.sin(angle) + (y - start[0]) * np.cos(angle)
    part = along / length_px
    bend = rng.normal(0, 0.12) * length_px * part * (1 - part)
    breadth = width_px * np.clip(4 * part * (1 - part), 0, 1) ** 0.4
    inside = (part > 0) & (part < 1)
    return np.where(inside, np.clip(breadth / 2 - np.abs(across - bend) + 0.5, 0, 1), 0.0)
