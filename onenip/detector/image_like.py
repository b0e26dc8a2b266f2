"""Everything that can be given as an image, as one kind of array.

Imports no torch, so that exported models on the edge take the same inputs as the detector.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, Self, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onenip.errors import DataError, ImageError
from onenip.images import (
    MAX_PIXELS,
    SampleRange,
    decide_range,
    load_image,
    measure_samples,
    shows_nothing,
    to_rgb,
)

_GREY_AXES = 2
_RANGE_SLACK = 1e-2  # resizing may overshoot 0..1 by this


class TensorLike(Protocol):
    """A `torch.Tensor`, as far as this module needs it."""

    def detach(self) -> Self:
        """Without its gradient."""
        ...

    def cpu(self) -> Self:
        """On the CPU."""
        ...

    def float(self) -> Self:
        """In float32."""
        ...

    def is_floating_point(self) -> bool:
        """Whether its values are floats of any width."""
        ...

    def numpy(self, *, force: bool = False) -> NDArray[np.generic]:
        """Its values."""
        ...


ImageLike = Path | str | Image.Image | NDArray[np.uint8] | TensorLike


def to_array(image: ImageLike, sample_range: SampleRange | None = None) -> NDArray[np.uint8]:
    """Any image that can be judged as [H, W, 3] uint8, RGB.

    Args:
        image: a path, a PIL image, a uint8 array [H, W, 3] or [H, W], or a torch tensor [3, H, W]
            (uint8 0..255, or float 0..1).
        sample_range: of the image's category, for files and PIL images of more than 8 bits.

    Raises:
        ImageError: if a path cannot be read, a PIL image not be scaled, or nothing can be seen.
        DataError: if an array or tensor has another shape or type, or an image has too many pixels.
    """
    array = _to_array(image, sample_range)
    if shows_nothing(array):
        name = image if isinstance(image, (str, Path)) else "image"
        colour = array.mean((0, 1)).round().astype(int).tolist()
        reason = f"nothing can be seen, all is of the colour {colour}"
        raise ImageError(name, f"{reason}: is the camera covered, dark or burnt out?")
    return array


def _to_array(image: ImageLike, sample_range: SampleRange | None) -> NDArray[np.uint8]:
    if isinstance(image, (str, Path)):
        return load_image(image, sample_range=sample_range)
    if isinstance(image, Image.Image):
        _check_size(image.height, image.width)
        return to_rgb(image, sample_range)
    if _is_tensor(image):
        return _tensor_to_array(image.detach().cpu())
    array = np.asarray(image)
    _check_size(*array.shape[:2])
    if array.ndim == _GREY_AXES:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise DataError(
            f"an image array must be [H, W, 3] or [H, W] uint8, not {list(array.shape)} {array.dtype}"
        )
    return array


def decide_given(images: Iterable[ImageLike]) -> SampleRange | None:
    """Range of samples of a category, decided on those of its normal images that are files.

    Raises:
        ImageError: if a file cannot be read.
    """
    return decide_range(measure_samples(i) for i in images if isinstance(i, (str, Path)))


def _check_size(height: int = 0, width: int = 0) -> None:
    """Refuse what no file may hold either."""
    if height * width > MAX_PIXELS:
        raise DataError(f"an image has at most {MAX_PIXELS:,} pixels, not {width} x {height}")


def _is_tensor(image: object) -> TypeGuard[TensorLike]:
    torch = sys.modules.get("torch")  # who has a tensor has imported torch
    return torch is not None and isinstance(image, torch.Tensor)


def _tensor_to_array(tensor: TensorLike) -> NDArray[np.uint8]:
    values = tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
    if values.ndim != 3 or values.shape[0] != 3 or not values.size:
        raise DataError(f"an image tensor must be [3, H, W], not {list(values.shape)}")
    _check_size(*values.shape[1:])
    if np.issubdtype(values.dtype, np.floating):
        low, high = float(values.min()), float(values.max())
        if not (low >= -_RANGE_SLACK and high <= 1 + _RANGE_SLACK):  # NaN is neither
            raise DataError(f"a float image tensor must be in 0..1, not {low:g}..{high:g}")
        values = np.rint(np.clip(values, 0, 1) * np.float32(255)).astype(np.uint8)
    if values.dtype != np.uint8:
        raise DataError(f"an image tensor must be uint8 or float, not {values.dtype}")
    return np.ascontiguousarray(values.transpose(1, 2, 0), dtype=np.uint8)
