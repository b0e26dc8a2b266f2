"""Heat maps over images, the same in reports, on the page and at the edge. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from onenip.detector.prediction import Region

_SIDE_PX = 288  # longer side of a panel
_GAP_PX = 6
_OPACITY = 0.65
_OUTLINE = (255, 255, 255)  # of defective pixels and of boxes
_PAPER = 255
_STRIP_PX = 1 << 20  # that are coloured at once
# colours of nine levels from 0 to 1, linear in between: from black over red to a pale yellow
_COLOURS = np.array(
    [(0, 0, 4), (33, 12, 74), (87, 16, 110), (138, 34, 106), (188, 55, 84), (228, 90, 49),
     (249, 142, 9), (249, 203, 53), (252, 255, 164)]
)  # fmt: skip
_LUMA = np.array([0.299, 0.587, 0.114])


def draw_picture(
    image: NDArray[np.uint8],
    score_map: NDArray[np.float32],
    mask: NDArray[np.bool_] | None,
    *,
    pixel_threshold: float,
) -> NDArray[np.uint8]:
    """Image, heat map over it, and mask, side by side. An unknown mask is left out.

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
    panels = [small, draw_heat(small, heat, pixel_threshold=pixel_threshold)]
    if mask is not None:
        levels = Image.fromarray(mask.astype(np.uint8) * 255)
        grey = np.asarray(levels.resize(size, Image.Resampling.BOX))
        panels.append(np.repeat(grey[:, :, None], 3, axis=2))
    gap = np.full((size[1], _GAP_PX, 3), _PAPER, dtype=np.uint8)
    joined = [part for panel in panels for part in (gap, panel)][1:]
    return np.concatenate(joined, axis=1)


def draw_heat(
    image: NDArray[np.uint8],
    score_map: NDArray[np.float32],
    *,
    pixel_threshold: float,
    regions: Sequence[Region] = (),
) -> NDArray[np.uint8]:
    """The image in grey, coloured where the map is high, defective pixels outlined in white.

    The colours run from 0 to twice the pixel threshold, so that pictures can be compared.

    Args:
        image: [H, W, 3] uint8, RGB.
        score_map: [H, W] float32.
        pixel_threshold: of the map.
        regions: to draw boxes around.

    Returns:
        [H, W, 3] uint8, RGB.
    """
    top = 2 * pixel_threshold if pixel_threshold > 0 else float(score_map.max())
    defective = score_map > pixel_threshold
    outline = defective & ~ndimage.binary_erosion(defective, border_value=1)
    drawn = np.empty_like(image)
    rows = max(1, _STRIP_PX // image.shape[1])
    for at in range(0, len(image), rows):
        strip = slice(at, at + rows)
        drawn[strip] = _mix(image[strip], score_map[strip], top)
    drawn[outline] = _OUTLINE
    picture = Image.fromarray(drawn)
    draw = ImageDraw.Draw(picture)
    width = max(1, image.shape[1] // 200)
    for region in regions:
        right, bottom = region.x + region.width, region.y + region.height
        draw.rectangle((region.x, region.y, right, bottom), outline=_OUTLINE, width=width)
    return np.asarray(picture)


def _mix(image: NDArray[np.uint8], score_map: NDArray[np.float32], top: float) -> NDArray[np.uint8]:
    """Grey and colours of some rows: 170 bytes for each pixel while it works."""
    level = np.clip(score_map / top, 0, 1) if top > 0 else np.zeros_like(score_map)
    stops = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(level, stops, channel) for channel in _COLOURS.T], axis=-1)
    grey = np.repeat((image @ _LUMA)[:, :, None], 3, axis=2)
    opacity = (_OPACITY * np.clip(level * 2, 0, 1))[:, :, None]
    return np.clip(np.rint(grey * (1 - opacity) + colours * opacity), 0, 255).astype(np.uint8)
