"""Everything that can be given as an image, as one kind of array.

Imports no torch, so that exported models on the edge take the same inputs as the detector.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Protocol, Self, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onenip.errors import DataError
from onenip.images import load_image, to_rgb

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


def to_array(image: ImageLike) -> NDArray[np.uint8]:
    """Any image as [H, W, 3] uint8, RGB.

    Args:
        image: a path, a PIL image, a uint8 array [H, W, 3] or [H, W], or a torch tensor [3, H, W]
            (uint8 0..255, or float 0..1).

    Raises:
        ImageError: if a path cannot be read.
        DataError: if an array or tensor has another shape or type.
    """
    if isinstance(image, (str, Path)):
        return load_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if _is_tensor(image):
        return _tensor_to_array(image.detach().cpu())
    array = np.asarray(image)
    if array.ndim == _GREY_AXES:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise DataError(
            f"an image array must be [H, W, 3] or [H, W] uint8, not {list(array.shape)} {array.dtype}"
        )
    return array


def _is_tensor(image: object) -> TypeGuard[TensorLike]:
    torch = sys.modules.get("torch")  # who has a tensor has imported torch
    return torch is not None and isinstance(image, torch.Tensor)


def _tensor_to_array(tensor: TensorLike) -> NDArray[np.uint8]:
    values = tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy()
    if values.ndim != 3 or values.shape[0] != 3 or not values.size:
        raise DataError(f"an image tensor must be [3, H, W], not {list(values.shape)}")
    if np.issubdtype(values.dtype, np.floating):
        low, high = float(values.min()), float(values.max())
        if not (low >= -_RANGE_SLACK and high <= 1 + _RANGE_SLACK):  # NaN is neither
            raise DataError(f"a float image tensor must be in 0..1, not {low:g}..{high:g}")
        values = np.rint(np.clip(values, 0, 1) * np.float32(255)).astype(np.uint8)
    if values.dtype != np.uint8:
        raise DataError(f"an image tensor must be uint8 or float, not {values.dtype}")
    return np.ascontiguousarray(values.transpose(1, 2, 0), dtype=np.uint8)
