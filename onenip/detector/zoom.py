"""Choice of a category's zoom: at which multiple of the input size its images are looked at.

A photograph that is enlarged shows nothing more, and the network knows enlarged ones badly; one that is
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


def choose_zoom(sizes: Iterable[tuple[int, int]], params: ModelParams) -> float:
    """The largest of `model.zooms` that needs no more pixels than the median of images has.

    Args:
        sizes: (height, width) in px of a category's normal images, at least one.
        params: the zooms, of which the smallest is taken where none fits, and the input size.
    """
    native = float(np.median([math.sqrt(height * width) for height, width in sizes]))
    base = math.sqrt(params.input_size[0] * params.input_size[1])
    zooms = _list_zooms(params)
    return max((z for z in zooms if z * base <= native), default=min(zooms))


def choose_zooms(samples: Sequence[Sample], params: ModelParams) -> dict[str, float]:
    """Zoom of each category of a manifest, by its normal images for fitting and calibration.

    Raises:
        ImageError: if an image cannot be read.
    """
    if len(_list_zooms(params)) == 1:
        return dict.fromkeys(list_categories(samples), *_list_zooms(params))
    zooms = {}
    for category in list_categories(samples):
        own = select(samples, category=category)
        normals = [s for s in own if s.subset in ("fit", "calibration")] or own
        first = sorted(normals, key=lambda sample: sample.sha256)[:_MEASURED]
        zooms[category] = choose_zoom((read_header(s.path)[:2] for s in first), params)
    return zooms


def _list_zooms(params: ModelParams) -> tuple[float, ...]:
    has_none = params.refiner == "paper" or takes_one_size(params.backbone)
    return (1.0,) if has_none else params.zooms
