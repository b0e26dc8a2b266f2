"""Figures of merit: exact, streaming, and honest about what is not defined.

- `figures`: AUROC, AP and F1-max of image scores; accuracy, recall and false-alarm rate of verdicts
- `pixels`: `PixelScores`, which takes one map at a time and never holds all of them
- `areas`: pixel AUROC, AP, F1-max and AUPRO from counts in descending order of score
- `segments`: sorted pixels of each image, kept in files
- `resampling`: bootstrap over images, for intervals of every figure

All figures are fractions in 0..1.

    scores = PixelScores()
    for map, mask in test_set:
        scores.update(map, mask)
    scores.compute()["aupro"]
"""

from onenip.evaluation.metrics.figures import (
    IMAGE_NAMES,
    NAMES,
    PIXEL_NAMES,
    VERDICT_NAMES,
    Figure,
    Undefined,
    image_figures,
    mean_figure,
    verdict_figures,
)
from onenip.evaluation.metrics.pixels import PixelScores

__all__ = [
    "IMAGE_NAMES",
    "NAMES",
    "PIXEL_NAMES",
    "VERDICT_NAMES",
    "Figure",
    "PixelScores",
    "Undefined",
    "image_figures",
    "mean_figure",
    "verdict_figures",
]
