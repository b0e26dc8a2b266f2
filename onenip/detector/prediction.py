"""What a detector says of one image, whatever runs it. Knows numpy only, so that an edge can have it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onenip.detector.regions import Region


@dataclass(frozen=True)
class Prediction:
    """What the detector says of one image.

    Attributes:
        category: the product category that it was judged as.
        category_inferred: whether the category was told from the prompts, not given.
        score: image score; higher is more anomalous.
        threshold: an image scoring above it is anomalous.
        is_anomalous: the verdict.
        map: [H, W] float32 at the image's own size; higher is more anomalous.
        input_map: [h, w] float32, the same map at the model's input size.
        pixel_threshold: a pixel of the map above it is defective.
        regions: connected defective regions, at the image's own size, highest score first.
        seconds: wall-clock time that this image took.
        is_provisional: whether the model was never trained on this category, only shown its prompts.
    """

    category: str
    category_inferred: bool
    score: float
    threshold: float
    is_anomalous: bool
    map: NDArray[np.float32]
    input_map: NDArray[np.float32]
    pixel_threshold: float
    regions: tuple[Region, ...]
    seconds: float
    is_provisional: bool = False
