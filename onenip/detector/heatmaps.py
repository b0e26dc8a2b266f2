"""An image beside its heat map, as one picture. Knows no model, so that an edge can draw it."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

_SIDE_PX = 288  # longer side of a panel
_GAP_PX = 6
_OPACITY = 0.65
_OUTLINE = (255, 255, 255)
_PAPER = 255
_LUMA = np.array([0.299, 0.587, 0.114])


def draw_picture(
    image: NDArray[np.uint8],
    score_map: NDArray[np.float32],
    mask: NDArray[np.bool_] | None,
    *,
    pixel_threshold: float,
) -> NDArray[np.uint8]:
    """Image, heat map over it, and mask, side by side.

    The heat's colours run from 0 to twice the pixel threshold, so that pictures can be compared;
    what the model calls defective is outlined in white. An unknown mask is left out.

    Args:
        image: [H, W, 3] uint8, RGB.
        score_map: [h, w] float32.
        mask: [H, W] bool, or None.
        pixel_threshold: of the map.

    Returns:
        [h', w', 3] uint8, RGB, on white; panels at most 288 px high and wide.
    """
    height, width = image.shape[:2]
    scale = min(1.0, _SIDE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    heat = np.asarray(Image.fromarray(score_map).resize(size, Image.Resampling.BILINEAR))
    panels = [small, _overlay(small, np.nan_to_num(heat), pixel_threshold)]
    if mask is not None:
        levels = Image.fromarray(mask.astype(np.uint8) * 255)
        grey = np.asarray(levels.resize(size, Image.Resampling.BOX))
        panels.append(np.repeat(grey[:, :, None], 3, axis=2))
    gap = np.full((size[1], _GAP_PX, 3), _PAPER, dtype=np.uint8)
    joined = [part for panel in panels for part in (gap, panel)][1:]
    return np.concatenate(joined, axis=1)


def _overlay(
    image: NDArray[np.uint8], heat: NDArray[np.float32], pixel_threshold: float
) -> NDArray[np.uint8]:
    """The image in grey, heated where the map is high, outlined where it is above the threshold."""
    top = 2 * pixel_threshold if pixel_threshold > 0 else float(heat.max())
    level = np.clip(heat / top, 0, 1) if top > 0 else np.zeros_like(heat)
    colours = mpl.colormaps["inferno"](level)[:, :, :3] * 255
    grey = np.repeat((image @ _LUMA)[:, :, None], 3, axis=2)
    opacity = (_OPACITY * np.clip(level * 2, 0, 1))[:, :, None]
    mixed = grey * (1 - opacity) + colours * opacity
    region = heat > pixel_threshold
    mixed[region & ~ndimage.binary_erosion(region, border_value=1)] = _OUTLINE
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)
