"""Reading images, the one way that training, evaluation and serving share.

Promises that every file becomes the same thing, an upright RGB array, whatever its mode, bit depth or
EXIF orientation, or an `ImageError`, whatever a decoder makes of it. Knows nothing of torch or of data sets.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from onenip.errors import ImageError
from onenip.folders import walk_files

# files that are taken for images by their names, and the formats that are ever opened, whatever the name
IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp"}
)
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # JPEG opens MPO, too
MAX_PIXELS = 100_000_000  # 10,000 x 10,000 px: larger images are refused before they are decoded

_Value = TypeVar("_Value", bound=np.generic)
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SUBFILE_TYPE, _PHOTOMETRIC = 254, 262  # tags of TIFF
_WHITE_IS_ZERO = 0
_COLOUR_16_BIT = ("16B", "16L", "16N")  # ends of the raw modes
_UINT8_MAX = 255
_UINT12_MAX = 4095
_UINT16_MAX = 65535
_LEAST_16_BIT = 1 << 14  # a brightest value below it comes of a camera of 10, 12 or 14 bits
_FLOAT_SLACK = 0.01  # by which filtering may overshoot 0..1
_MAX_CLASSES = 32  # more grey values than this are shades, not classes of defects


def load_image(source: Path | str | bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Upright RGB pixels of an image file.

    Grey is repeated over three channels, 16 bits are scaled to 8 over their full range, floats over 0..1,
    CMYK is converted, transparency is composed onto black, and EXIF orientation is applied. Of a
    multi-picture JPEG (MPO) the primary picture is taken.

    Nothing is guessed from one image: values whose range cannot be known are refused, such as 12 bits stored
    in 16, floats beyond 0..1, signed and 32-bit integers. So is a file of several frames.

    Args:
        source: a file, or the bytes of one.
        max_pixels: images of more pixels (height times width) are refused before decoding.

    Returns:
        [H, W, 3] uint8, RGB, 0..255, origin top-left.

    Raises:
        ImageError: if the file is missing, no image of a known format, truncated, empty, too large, of
            several frames, or of values whose range cannot be known.
    """
    return _decode(source, max_pixels, to_rgb)


def read_header(source: Path | str | bytes) -> tuple[int, int, str, str]:
    """Width and height in px, PIL's mode and the format of an image file, without decoding it.

    Raises:
        ImageError: as `load_image`.
    """
    name = "<bytes>" if isinstance(source, bytes) else source
    with _explain(name, source), _open(source) as image:
        return image.width, image.height, image.mode, image.format or ""


def to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Upright RGB pixels of a PIL image of any mode: [H, W, 3] uint8, 0..255.

    Raises:
        ImageError: if the range of its values cannot be known.
    """
    raw_mode, is_inverted = _find_raw_mode(image), _is_white_zero(image)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        grey = _to_uint8(np.asarray(image), raw_mode)
        return np.repeat((_UINT8_MAX - grey if is_inverted else grey)[:, :, None], 3, axis=2)
    if raw_mode.endswith(_COLOUR_16_BIT):  # Pillow keeps the upper byte only
        _refuse_few_bits(int(np.asarray(image).max(initial=0)) * 256 + 1)
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return np.asarray(image.convert("RGB"))


def load_mask(source: Path | str | bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.bool_]:
    """Defect mask of a file: [H, W] bool, True where defective; EXIF orientation is applied.

    One rule for all formats. The value of a pixel is the index of a palette; alpha where the colours are
    constant; else the largest of the channels, black where transparent. Of a single value beside 0, and of
    several classes of defects, any non-zero counts. A soft mask, and any JPEG, counts from half of its range.

    Raises:
        ImageError: as `load_image`.
    """
    return _decode(source, max_pixels, _to_mask)


def load_mask_classes(source: Path | str | bytes) -> list[int]:
    """Values of a mask of several classes of defects, sorted; empty for a mask of one class.

    Raises:
        ImageError: as `load_image`.
    """
    return _decode(source, MAX_PIXELS, lambda image: _find_classes(*_to_levels(image))).tolist()


def find_images(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files below a folder that are images by their names, and the others, each sorted.

    Links are followed; operating systems' own files are left out of both; see `onenip.folders.walk_files`.
    """
    files = list(walk_files(folder))
    is_image = [path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() for path in files]
    return (
        [path for path, yes in zip(files, is_image, strict=True) if yes],
        [path for path, yes in zip(files, is_image, strict=True) if not yes],
    )


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


def resize_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask [H, W] bool at another size (height, width) in px: True where most of a pixel is."""
    if mask.shape == size:
        return mask
    resized = Image.fromarray(mask.astype(np.uint8) * 255).resize(size[::-1], Image.Resampling.BOX)
    return np.asarray(resized) > 127


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
    with _explain(name, source, max_pixels), _open(source) as image:
        if image.width * image.height > max_pixels:
            size = f"{image.width}x{image.height}"
            raise ImageError(name, f"{size} px is more than {max_pixels} pixels")
        frames = _count_frames(image)
        if frames > 1:
            raise ImageError(name, f"it holds {frames} frames; save each as an image of its own")
        return convert(image)


def _open(source: Path | str | bytes) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)


@contextmanager
def _explain(
    name: Path | str, source: Path | str | bytes, max_pixels: int = MAX_PIXELS
) -> Iterator[None]:
    """Turn whatever a decoder raises into an `ImageError`: a damaged file may make it raise anything."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError as error:
        raise ImageError(name, error.reason) from error
    except FileNotFoundError as error:
        raise ImageError(name, "no such file") from error
    except IsADirectoryError as error:
        raise ImageError(name, "it is a folder") from error
    except UnidentifiedImageError as error:
        raise ImageError(name, _why_unidentified(source)) from error
    except Image.DecompressionBombError as error:
        raise ImageError(name, f"more than {max_pixels} pixels") from error
    except Exception as error:  # damaged bytes make a decoder raise anything
        raise ImageError(name, f"cannot be decoded ({error})") from error


def _count_frames(image: Image.Image) -> int:
    """Pictures of a file, without the reduced copies that a TIFF may hold beside its picture."""
    frames = int(getattr(image, "n_frames", 1))
    if frames == 1 or image.format == "MPO":
        return 1
    if image.format != "TIFF":
        return frames
    full = 0
    for index in range(frames):
        image.seek(index)
        full += not int(image.tag_v2.get(_SUBFILE_TYPE, 0)) & 1  # type: ignore[attr-defined]  # a TIFF's
    image.seek(0)
    return max(full, 1)


def _find_raw_mode(image: Image.Image) -> str:
    """How the file stores its values, in Pillow's words such as I;16B; empty once they are decoded."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments or "")


def _is_white_zero(image: Image.Image) -> bool:
    """Whether 0 is white, which Pillow turns round in images of 8 bits only."""
    tags = getattr(image, "tag_v2", None)
    return tags is not None and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO


def _to_uint8(values: NDArray[np.generic], raw_mode: str) -> NDArray[np.uint8]:
    """Grey values of 16 bits or of floats in 0..1 as 0..255.

    Raises:
        ImageError: if their range cannot be known.
    """
    numbers = values.astype(np.float64)
    if np.issubdtype(values.dtype, np.floating):
        if not np.isfinite(numbers).all():
            raise ImageError("image", "it holds values that are not numbers")
        low, high = float(numbers.min()), float(numbers.max())
        if low < -_FLOAT_SLACK or high > 1 + _FLOAT_SLACK:
            reason = (
                f"its values are floats of {low:g} to {high:g}; scale them to 0..1, or to 8 bits"
            )
            raise ImageError("image", reason)
        full = 1.0
    elif values.dtype.itemsize == 2 and values.dtype.kind == "u":
        full = _UINT16_MAX
        if raw_mode.endswith(";12"):  # packed, so that the file itself names its range
            full = _UINT12_MAX
        else:
            _refuse_few_bits(int(numbers.max(initial=0)))
    else:
        raise ImageError("image", "its values are signed or of 32 bits; scale them to 8 or 16 bits")
    return np.clip(np.rint(numbers * (_UINT8_MAX / full)), 0, _UINT8_MAX).astype(np.uint8)


def _refuse_few_bits(highest: int) -> None:
    """Refuse an image of 16 bits that seems to use fewer; a black one is left to validation."""
    if 0 < highest < _LEAST_16_BIT:
        bits = max(highest.bit_length(), 8)
        reason = f"it looks like {bits} bits stored in 16: no value is above {highest}"
        raise ImageError("image", f"{reason}; scale it to 8 bits, or to all of 16")


def _to_mask(image: Image.Image) -> NDArray[np.bool_]:
    levels, is_lossy = _to_levels(image)
    if is_lossy:
        return np.asarray(levels.astype(np.float64) > _UINT8_MAX / 2)
    values = np.unique(levels[levels != 0])
    if len(values) <= 1 or len(_find_classes(levels, is_lossy)):
        return np.asarray(levels != 0)
    return np.asarray(levels.astype(np.float64) >= float(values[-1]) / 2)


def _to_levels(image: Image.Image) -> tuple[NDArray[np.generic], bool]:
    """Value of each pixel of a mask, [H, W], and whether compression may have blurred it."""
    is_lossy = image.format in ("JPEG", "MPO") or image.info.get("compression") == "jpeg"
    image = ImageOps.exif_transpose(image)
    if image.mode in {"P", "L", "1", "F"} or image.mode.startswith("I"):
        return np.nan_to_num(np.asarray(image)), is_lossy
    if image.mode not in {"LA", "PA", "RGBA"}:
        return np.asarray(image.convert("RGB")).max(axis=2), is_lossy
    pixels = np.asarray(image.convert("RGBA"))
    colour, alpha = pixels[:, :, :3].max(axis=2), pixels[:, :, 3]
    is_plain = (pixels[:, :, :3] == pixels[:1, :1, :3]).all()
    if is_plain and (alpha != alpha[:1, :1]).any():
        return alpha, is_lossy
    return np.where(alpha > 0, colour, 0), is_lossy


def _find_classes(levels: NDArray[np.generic], is_lossy: bool) -> NDArray[np.generic]:
    """Values of several classes of defects, sorted; empty if there is one class, or soft edges.

    A class has an interior: somewhere nine pixels of one value lie together, as they never do in the edge of
    a soft mask. Small numbers are classes in any case.
    """
    values = np.unique(levels[levels != 0])
    if is_lossy or not 2 <= len(values) <= _MAX_CLASSES:
        return values[:0]
    row = (levels[:, 2:] == levels[:, 1:-1]) & (levels[:, 1:-1] == levels[:, :-2])
    inner = levels[1:-1, 1:-1]
    is_inner = row[2:] & row[1:-1] & row[:-2]
    is_inner &= (levels[2:, 1:-1] == inner) & (levels[:-2, 1:-1] == inner)
    found = np.unique(inner[is_inner & (inner != 0)])
    return values if len(found) >= 2 or values[-1] <= _MAX_CLASSES else values[:0]


def _why_unidentified(source: Path | str | bytes) -> str:
    if isinstance(source, bytes):
        head = source[:4]
    else:
        with Path(source).open("rb") as file:
            head = file.read(4)
    if not head:
        return "empty file"
    if head in _TIFF_MAGIC:
        return "a TIFF of a kind that is not supported, or damaged; save it with 8 or 16 bits a channel"
    return "not an image that can be read; PNG, JPEG, BMP, TIFF and WebP can"
