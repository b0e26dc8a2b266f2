"""Pictures for the page: heat over an image with boxes, and a score among those of normal images."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from onenip.detector.prediction import Region

NORMAL_COLOUR = "#15803d"
ANOMALOUS_COLOUR = "#b91c1c"
_GREY = "#64748b"
_OPACITY = 0.6
_BOX = (255, 255, 255)


def draw_heat(
    image: NDArray[np.uint8],
    score_map: NDArray[np.float32],
    regions: Sequence[Region],
    *,
    threshold: float,
) -> NDArray[np.uint8]:
    """Heat over an image, with the boxes of its regions.

    Args:
        image: [H, W, 3] uint8, RGB.
        score_map: [H, W] float32.
        regions: to outline.
        threshold: of pixels; the colours run from 0 to twice this.

    Returns:
        [H, W, 3] uint8, RGB.
    """
    share = np.clip(score_map / (2 * max(threshold, 1e-6)), 0, 1)
    heat = mpl.colormaps["turbo"](share)[:, :, :3] * 255
    alpha = (_OPACITY * share)[:, :, None]
    picture = Image.fromarray((image * (1 - alpha) + heat * alpha).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    width = max(1, image.shape[1] // 200)
    for region in regions:
        right, bottom = region.x + region.width, region.y + region.height
        draw.rectangle((region.x, region.y, right, bottom), outline=_BOX, width=width)
    return np.asarray(picture)


def draw_score(score: float, threshold: float, normal_scores: Sequence[float]) -> Figure:
    """The score and the threshold above the histogram of the scores of normal images."""
    figure = Figure(figsize=(4.6, 1.6), dpi=160, layout="constrained")
    axes = figure.subplots()
    colour = ANOMALOUS_COLOUR if score > threshold else NORMAL_COLOUR
    axes.hist(normal_scores, bins=12, color="#cbd5e1", label=f"{len(normal_scores)} normal images")
    axes.axvline(threshold, color=_GREY, linestyle="--", linewidth=1.5, label="threshold")
    axes.axvline(score, color=colour, linewidth=2.5, label="this image")
    axes.set_yticks([])
    axes.tick_params(labelsize=8, colors=_GREY)
    axes.set_xlabel("image score", fontsize=8, color=_GREY)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=3, fontsize=8, frameon=False)
    return figure
