"""Reading images, the one way that training, evaluation and serving share.

Promises that every file becomes the same thing, an upright RGB array, whatever its mode, bit depth or
EXIF orientation. Knows nothing of torch or of data sets.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from onenip.errors import ImageError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 100_000_000  # 10,000 x 10,000 px: larger images are refused before they are decoded

_Value = TypeVar("_Value", bound=np.generic)
# What Pillow's decoders raise on damaged files.
_DECODING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
)
_UINT8_MAX = 255
_UINT16_MAX = 65535


def load_image(source: Path | str | bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Upright RGB pixels of an image file.

    Grey is repeated over three channels, 16 bits are scaled to 8 over their full range, CMYK is converted,
    transparency is composed onto black, and EXIF orientation is applied.

    Args:
        source: a file, or the bytes of one.
        max_pixels: images of more pixels (height times width) are refused before decoding.

    Returns:
        [H, W, 3] uint8, RGB, 0..255, origin top-left.

    Raises:
        ImageError: if the file is missing, no image, truncated, empty or too large.
    """
    return _decode(source, max_pixels, to_rgb)


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Upright RGB pixels of a PIL image of any mode: [H, W, 3] uint8, 0..255."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_to_uint8(np.asarray(image))[:, :, None], 3, axis=2)
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return np.asarray(image.convert("RGB"))


def load_mask(source: Path | str | bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.bool_]:
    """Defect mask of a file: [H, W] bool, True where defective; any non-zero value counts.

    Values are judged as stored, so that a 16-bit mask of 0 and 1 is not lost; transparency is not looked at,
    and EXIF orientation is applied as it is to images.

    Raises:
        ImageError: as `load_image`.
    """
    return _decode(source, max_pixels, _to_levels) != 0


def load_mask_levels(
    source: Path | str | bytes, *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.generic]:
    """Values of a mask as stored: [H, W], the largest of the channels.

    Raises:
        ImageError: as `load_image`.
    """
    return _decode(source, max_pixels, _to_levels)


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Bilinear resize with antialiasing, aspect not kept.

    Args:
        image: [H, W, 3] uint8.
        size: target (height, width) in px.

    Returns:
        [height, width, 3] uint8.

    Source: OneNIP section 4.1 (every image is resized to a square input).
    """
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _decode(
    source: Path | str | bytes,
    max_pixels: int,
    convert: Callable[[Image.Image], NDArray[_Value]],
) -> NDArray[_Value]:
    name = "<bytes>" if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                if image.width * image.height > max_pixels:
                    size = f"{image.width}x{image.height}"
                    raise ImageError(name, f"{size} px is more than {max_pixels} pixels")
                image.load()
                return convert(image)
    except FileNotFoundError as error:
        raise ImageError(name, "no such file") from error
    except UnidentifiedImageError as error:
        raise ImageError(name, _why_unidentified(source)) from error
    except Image.DecompressionBombError as error:
        raise ImageError(name, f"more than {max_pixels} pixels") from error
    except _DECODING_ERRORS as error:
        raise ImageError(name, f"cannot be decoded ({error})") from error


def _to_levels(image: Image.Image) -> NDArray[np.generic]:
    image = ImageOps.exif_transpose(image)
    if image.mode in {"LA", "PA", "RGBA", "P"}:
        image = image.convert("RGB")
    values = np.asarray(image)
    return values.max(axis=2) if values.ndim == 3 else values


def _to_uint8(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey values of any depth as 0..255; integers are taken as 16-bit, floats as 0..1 or 0..255."""
    numbers = np.nan_to_num(values.astype(np.float64), posinf=_UINT8_MAX, neginf=0.0)
    if np.issubdtype(values.dtype, np.floating):
        scale = _UINT8_MAX if numbers.max(initial=0.0) <= 1.0 else 1.0
    else:
        scale = _UINT8_MAX / _UINT16_MAX
    return np.clip(np.rint(numbers * scale), 0, _UINT8_MAX).astype(np.uint8)


def _why_unidentified(source: Path | str | bytes) -> str:
    empty = len(source) == 0 if isinstance(source, bytes) else Path(source).stat().st_size == 0
    return "empty file" if empty else "not an image"
