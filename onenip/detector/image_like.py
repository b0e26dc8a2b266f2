"""Everything that can be given as an image, as one kind of array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from onenip.errors import DataError
from onenip.images import load_image, to_rgb

ImageLike = Path | str | Image.Image | NDArray[np.uint8] | Tensor

_GREY_AXES = 2
_RANGE_SLACK = 1e-2  # what resizing may overshoot 0..1 by


def to_array(image: ImageLike) -> NDArray[np.uint8]:
    """Any image as [H, W, 3] uint8, RGB.

    Raises:
        ImageError: if a path cannot be read.
        DataError: if an array or tensor has another shape or type.
    """
    if isinstance(image, (str, Path)):
        return load_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, Tensor):
        return _tensor_to_array(image.detach().cpu())
    array = np.asarray(image)
    if array.ndim == _GREY_AXES:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise DataError(
            f"an image array must be [H, W, 3] uint8, not {list(array.shape)} {array.dtype}"
        )
    return array


def _tensor_to_array(values: Tensor) -> NDArray[np.uint8]:
    if values.ndim != 3 or values.shape[0] != 3 or not values.numel():
        raise DataError(f"an image tensor must be [3, H, W], not {list(values.shape)}")
    if values.is_floating_point():
        low, high = float(values.min()), float(values.max())
        if not (low >= -_RANGE_SLACK and high <= 1 + _RANGE_SLACK):  # NaN is neither
            raise DataError(f"a float image tensor must be in 0..1, not {low:g}..{high:g}")
        values = (values.clamp(0, 1) * 255).round().to(torch.uint8)
    if values.dtype != torch.uint8:
        raise DataError(f"an image tensor must be uint8 or float, not {values.dtype}")
    return values.permute(1, 2, 0).contiguous().numpy()
