"""Textures for Perlin anomalies: photos of a folder, or drawn when there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onenip.errors import DataError
from onenip.images import find_images, load_image, resize_image
from onenip.synthesis.noise import Field, draw_perlin

DRAWN_COUNT = 64


def load_textures(
    folder: Path | None, *, size: tuple[int, int], rng: np.random.Generator, limit: int = 512
) -> list[NDArray[np.uint8]]:
    """Texture images at one size.

    Args:
        folder: photos in any layout of sub-folders; None draws textures instead.
        size: (H, W) in px of each result.
        rng: source of drawn textures, and of the choice where the folder holds more than `limit`.
        limit: photos at most.

    Returns:
        [H, W, 3] uint8 each, RGB.

    Raises:
        DataError: if the folder does not exist or holds no image.
    """
    if folder is None:
        return [draw_texture(size, rng) for _ in range(DRAWN_COUNT)]
    files = find_images(folder)[0] if folder.is_dir() else []
    if not files:
        raise DataError(f"{folder}: no texture images (synthesize.textures)", path=folder)
    if len(files) > limit:
        files = [files[i] for i in np.sort(rng.choice(len(files), limit, replace=False))]
    return [resize_image(load_image(file), size) for file in files]


def draw_texture(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """One drawn texture, [H, W, 3] uint8: a random pattern in a random palette, with grain."""
    patterns: Sequence[Callable[[tuple[int, int], np.random.Generator], Field]] = (
        _draw_clouds,
        _draw_stripes,
        _draw_cells,
        _draw_weave,
        _draw_speckles,
    )
    share = rng.random()
    picks = rng.choice(len(patterns), 2, replace=False)
    first, second = (_stretch(patterns[pick](size, rng)) for pick in picks)
    field = (share * first + (1 - share) * second).astype(np.float32)
    stops = np.asarray(rng.uniform(0, 255, (4, 3)))
    position = _stretch(field) * (len(stops) - 1)
    image = np.stack(
        [np.interp(position, np.arange(len(stops)), stops[:, c]) for c in range(3)], axis=-1
    )
    grain = np.asarray(rng.normal(0, rng.uniform(2, 14), size))[:, :, None]
    return np.clip(image + grain, 0, 255).astype(np.uint8)


def _draw_clouds(size: tuple[int, int], rng: np.random.Generator) -> Field:
    octaves = [
        draw_perlin(size, (2**k, 2**k), rng) * rng.uniform(0.4, 0.8) ** k for k in range(1, 7)
    ]
    return np.sum(octaves, axis=0).astype(np.float32)


def _draw_stripes(size: tuple[int, int], rng: np.random.Generator) -> Field:
    y, x = _axes(size)
    angle, count = rng.uniform(0, np.pi), rng.uniform(4, 50)
    warp = draw_perlin(size, (4, 4), rng) * rng.uniform(0, 0.15)
    phase = (np.cos(angle) * x + np.sin(angle) * y + warp) * count * 2 * np.pi
    sharpness = rng.uniform(1, 6)
    return np.tanh(np.sin(phase) * sharpness).astype(np.float32)


def _draw_cells(size: tuple[int, int], rng: np.random.Generator) -> Field:
    from scipy.spatial import cKDTree

    seeds = rng.uniform(0, 1, (int(rng.integers(20, 400)), 2))
    y, x = _axes(size)
    points = np.stack([y.ravel(), x.ravel()], axis=1)
    distance = np.asarray(cKDTree(seeds).query(points, k=2)[0])
    edge = distance[:, 1] - distance[:, 0]
    field = edge if rng.random() < 0.5 else distance[:, 0]
    return (np.clip(field / np.quantile(field, 0.9), 0, 1)).reshape(size).astype(np.float32)


def _draw_weave(size: tuple[int, int], rng: np.random.Generator) -> Field:
    y, x = _axes(size)
    across, along = rng.uniform(6, 40, 2)
    warp = draw_perlin(size, (2, 2), rng) * rng.uniform(0, 0.05)
    waves = np.sin((x + warp) * across * 2 * np.pi) * np.sin((y + warp) * along * 2 * np.pi)
    return np.tanh(waves * rng.uniform(1, 5)).astype(np.float32)


def _draw_speckles(size: tuple[int, int], rng: np.random.Generator) -> Field:
    from scipy.ndimage import gaussian_filter

    spots = (rng.random(size) < rng.uniform(0.002, 0.05)).astype(np.float32)
    return gaussian_filter(spots, rng.uniform(0.8, 4)).astype(np.float32)


def _axes(size: tuple[int, int]) -> tuple[Field, Field]:
    y, x = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]), indexing="ij")
    return y.astype(np.float32), x.astype(np.float32)


def _stretch(field: Field) -> Field:
    low, high = float(field.min()), float(field.max())
    return ((field - low) / max(high - low, 1e-6)).astype(np.float32)
