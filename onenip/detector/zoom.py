"""Choice of a category's zoom: at which multiple of the input size its details are looked at.

A photograph that is enlarged much shows nothing more, and the network knows enlarged ones badly; one that is
reduced loses its small defects. So the photographs' own resolution decides, and no image of a defect.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from onenip.data.manifest import Sample, list_categories, select
from onenip.images import read_header
from onenip.model.features import takes_one_size
from onenip.params import ModelParams

_MEASURED = 64  # images of a category whose size is read
_NEEDED = 0.75  # of the zoomed input's side that a photograph must have


def choose_zoom(sizes: Iterable[tuple[int, int]], params: ModelParams) -> int:
    """`model.zoom` if the median of images has nearly the pixels for it, else 1.

    Args:
        sizes: (height, width) in px of a category's normal images, at least one.
        params: the zoom and the input size.
    """
    if not _can_zoom(params):
        return 1
    native = float(np.median([math.sqrt(height * width) for height, width in sizes]))
    zoomed = params.zoom * math.sqrt(params.input_size[0] * params.input_size[1])
    return params.zoom if native >= _NEEDED * zoomed else 1


def choose_zooms(samples: Sequence[Sample], params: ModelParams) -> dict[str, int]:
    """Zoom of each category of a manifest, by its normal images for fitting and calibration.

    Raises:
        ImageError: if an image cannot be read.
    """
    if not _can_zoom(params):
        return dict.fromkeys(list_categories(samples), 1)
    zooms = {}
    for category in list_categories(samples):
        own = select(samples, category=category)
        normals = [s for s in own if s.subset in ("fit", "calibration")] or own
        first = sorted(normals, key=lambda sample: sample.sha256)[:_MEASURED]
        zooms[category] = choose_zoom((read_header(s.path)[:2] for s in first), params)
    return zooms


def _can_zoom(params: ModelParams) -> bool:
    has_memory = params.refiner != "paper" and params.memory_tokens > 0
    return params.zoom > 1 and has_memory and not takes_one_size(params.backbone)
