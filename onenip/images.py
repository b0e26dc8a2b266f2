"""Reading images, the one way that training, evaluation and serving share.

Promises that every file becomes the same thing, an upright RGB array, whatever its mode, bit depth or
EXIF orientation, or an `ImageError`, whatever a decoder makes of it. Knows nothing of torch or of data sets.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from onenip.errors import ImageError, RangeError
from onenip.folders import walk_files

# files that are taken for images by their names, and the formats that are ever opened, whatever the name
IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp"}
)
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # JPEG opens MPO, too
MAX_PIXELS = 100_000_000  # 10,000 x 10,000 px: larger images are refused before they are decoded

# values of black and of white, of samples of more than 8 bits; white may be the lower one
SampleRange = tuple[float, float]
FULL_WHITE = 65535  # of samples that use all of 16 bits
# categories differ, and which one it is is not known
UNCLEAR_RANGE: SampleRange = (math.nan, math.nan)

_Result = TypeVar("_Result")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_OTHER_FORMATS = (
    (b"GIF8", "GIF"),
    (b"\0\0\0\x0cjP", "JPEG 2000"),
    (b"P4", "PBM"),
    (b"P5", "PGM"),
    (b"P6", "PPM"),
    (b"%PDF", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"v/1\1", "OpenEXR"),
    (b"\x93NUMPY", "NumPy"),
)
_HEAD_BYTES = 8
# tags of TIFF, and values of the last three
_SUBFILE_TYPE, _BITS, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 254, 258, 262, 284, 339
_DESCRIPTION, _ORIENTATION, _COLOUR_MAP, _DEPTH = 270, 274, 320, 32997
# pictures behind the first one that are no pages of their own, as ImageJ and tifffile describe them
_STACK = re.compile(r'ImageJ=.*?^images=(\d+)|\{"shape": \[(\d+),.*"truncated": true', re.M | re.S)
_WHITE_IS_ZERO, _APART, _SIGNED = 0, 2, 2
_COLOUR_16_BIT = ("16B", "16L", "16N")  # ends of the raw modes
_UINT8_MAX = 255
_UINT12_MAX = 4095
_WHITES = (255, 1023, _UINT12_MAX, 16383, FULL_WHITE)  # of cameras of 8, 10, 12, 14 and 16 bits
_LEAST_16_BIT = 1 << 14  # a brightest value below it comes of a camera of 10, 12 or 14 bits
_FLOAT_SLACK = 0.01  # by which filtering may overshoot 0..1
_BURNT_PX = 16  # pixels at the white of a camera that are no chance
DARK = 15  # an image that uses less than this part of its range keeps hardly 16 grey levels
_REMEDY = "declare data.sample_ranges for its category, or scale it to 8 bits"
_MAX_FRAMES = 100  # that are counted
_MAX_SCANS, _SCAN = 64, b"\xff\xda"  # usual are 1 or 10, and a few for thumbnails
_MAX_SIDE = 1 << 18  # px; each row costs memory of its own: 1 x 100,000,000 px took 3.4 GB
_DEAD_LEVELS = 8  # of 255; see `shows_nothing`
_MAX_CLASSES = 32  # more grey values than this are shades, not classes of defects
_NOISE = 8  # compression leaves so much around black and around white
_INNER = 0.1  # of the pixels of a class lie within it
_MIN_LONELY, _LONELY = 9, 0.9  # pixels of a thin class, and the share of them that touch no other


def load_image(
    source: Path | str | bytes,
    *,
    sample_range: SampleRange | None = None,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """Upright RGB pixels of an image file.

    Grey is repeated over three channels, samples of more than 8 bits are scaled to 8, CMYK is converted,
    transparency is composed onto black, and EXIF orientation is applied. An alpha that is the same everywhere
    says nothing. Of a multi-picture JPEG (MPO) the primary picture is taken.

    Nothing is guessed from one image. Samples of more than 8 bits are read over the range that is given;
    without one, 16 bits over their full range and floats over 0..1, and those whose range cannot be known are
    refused: 12 bits stored in 16, floats beyond 0..1, signed and 32-bit integers. So are samples beyond the
    range, and a file of several frames.

    Args:
        source: a file, or the bytes of one.
        sample_range: of the image's category; see `decide_range`.
        max_pixels: images of more pixels (height times width) are refused before decoding.

    Returns:
        [H, W, 3] uint8, RGB, 0..255, origin top-left.

    Raises:
        ImageError: if the file is missing, no image of a known format, truncated, empty, too large, of
            several frames, or of values whose range cannot be known.
    """
    return _decode(source, max_pixels, lambda image: to_rgb(image, sample_range))


def read_header(source: Path | str | bytes) -> tuple[int, int, str, str]:
    """Width and height in px, PIL's mode and the format of an image file, without decoding it.

    Raises:
        ImageError: as `load_image`.
    """
    name = "<bytes>" if isinstance(source, bytes) else source
    with _explain(name, source), _open(source) as image:
        return image.width, image.height, image.mode, image.format or ""


def read_size(source: Path | str | bytes) -> tuple[int, int]:
    """Height and width in px of an image file, upright.

    Raises:
        ImageError: as `load_image`, but for the range of its samples.
    """
    width, height = _decode(source, MAX_PIXELS, lambda image: _turn_upright(image).size)
    return height, width


def to_rgb(image: Image.Image, sample_range: SampleRange | None = None) -> NDArray[np.uint8]:
    """Upright RGB pixels of a PIL image of any mode: [H, W, 3] uint8, 0..255.

    Raises:
        ImageError: if the range of its values cannot be known, or they are beyond the one that is given.
    """
    _mend(image)
    samples = _read_samples(image)
    image = _turn_upright(image)
    if samples is not None:
        scaled = Image.fromarray(_to_uint8(samples, sample_range))
        if samples.alpha is not None:
            scaled.putalpha(Image.fromarray(samples.alpha))
        image = scaled
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        image = image.convert("RGBA")
        least, most = image.getchannel("A").getextrema()
        if least != most:
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    if image.mode == "L":
        return np.repeat(np.asarray(image)[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


@dataclass(frozen=True)
class SampleExtent:
    """Lowest and highest sample of an image of more than 8 bits, and whether they are floats.

    `most` is the largest sample that their type could hold.
    """

    low: float
    high: float
    is_float: bool
    most: float = math.inf


def measure_samples(source: Path | str | bytes) -> SampleExtent | None:
    """Extent of the samples of an image file; None if it has 8 bits.

    Raises:
        ImageError: as `load_image`, but for their range.
    """
    samples = _decode(source, MAX_PIXELS, _read_samples)
    if samples is None:
        return None
    values = samples.values
    high = samples.own_white or float(values.max())
    if values.dtype.kind == "f":
        return SampleExtent(float(values.min()), high, is_float=True)
    most = float(np.iinfo(values.dtype.str).max)
    return SampleExtent(float(values.min()), high, is_float=False, most=most)


def decide_range(extents: Iterable[SampleExtent | None]) -> SampleRange | None:
    """Range that the samples of a category are read over, decided on all its normal images together.

    Integers: 0 to the white of a camera of 8, 10, 12, 14 or 16 bits; floats: 0..1, or the same whites.

    Args:
        extents: of all the images; None for one of 8 bits, which needs no range.

    Returns:
        None where all have 8 bits, or nothing says what black and white are: floats and integers are mixed,
        some are negative or not finite, or more than 16 bits are used.
    """
    deep = [one for one in extents if one is not None and one.high != one.low]
    if not deep or len({one.is_float for one in deep}) > 1:
        return None
    low, high = min(one.low for one in deep), max(one.high for one in deep)
    slack = _FLOAT_SLACK if deep[0].is_float else 0.0
    if not (low >= -slack and math.isfinite(high)):
        return None
    if deep[0].is_float and high <= 1 + slack:
        return 0.0, 1.0
    white = next((white for white in _WHITES if high <= white * (1 + slack)), None)
    if white is None or (deep[0].is_float and high < white / 4):
        return None
    return 0.0, min(float(white), *(one.most for one in deep))


def load_preview(source: Path | str | bytes) -> NDArray[np.uint8]:
    """Pixels of an image file for people to look at, never to be judged: [H, W, 3] uint8, RGB.

    As `load_image`, but samples of more than 8 bits whose range is not known are shown over the one that this
    image alone suggests.

    Raises:
        ImageError: as `load_image`, but for their range.
    """
    extent = measure_samples(source)
    own = decide_range([extent])
    if own is None and extent is not None and extent.low < extent.high:
        own = extent.low, extent.high
    return load_image(source, sample_range=own)


def share_range(ranges: Iterable[SampleRange | None]) -> SampleRange | None:
    """The range that categories have in common, for an image whose category is not known.

    Where they differ, `UNCLEAR_RANGE`: then only an image of 8 bits can be read.
    """
    distinct = set(ranges)
    return distinct.pop() if len(distinct) == 1 else UNCLEAR_RANGE


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


def explain_suffix(path: Path | str) -> str:
    """Why a file is not taken that is no image by its name: its format where that is known, else its name."""
    with suppress(OSError, ImageError):
        reason = _why_unidentified(path)
        if reason != _NO_IMAGE:
            return reason
    return "its name does not end as that of an image"


def shows_nothing(image: NDArray[np.uint8]) -> bool:
    """Whether an image [H, W, 3] uint8 is one colour and noise: each channel within 8 levels of 255."""
    return all(int(one.max()) - int(one.min()) <= _DEAD_LEVELS for one in np.moveaxis(image, 2, 0))


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
    """A mask [H, W] bool at another size (height, width) in px: each pixel that of the nearest."""
    if mask.shape == size:
        return mask
    return np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _decode(
    source: Path | str | bytes,
    max_pixels: int,
    convert: Callable[[Image.Image], _Result],
) -> _Result:
    name = "<bytes>" if isinstance(source, bytes) else source
    with _explain(name, source, max_pixels), _open(source) as image:
        if image.width * image.height > max_pixels:
            size = f"{image.width}x{image.height}"
            raise ImageError(name, f"{size} px is more than {max_pixels} pixels")
        if max(image.size) > _MAX_SIDE:
            raise ImageError(name, f"a side of more than {_MAX_SIDE} pixels; cut it into several")
        frames = _count_frames(image)
        if frames > 1:
            raise ImageError(name, f"it holds {frames} frames; save each as an image of its own")
        if image.format in ("JPEG", "MPO") and _has_many_scans(image):
            raise ImageError(name, f"a JPEG of more than {_MAX_SCANS} scans; save it anew")
        _mend(image)
        return convert(image)


def _open(source: Path | str | bytes) -> Image.Image:
    _refuse_pipe(source)
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
        raise type(error)(name, error.reason) from error
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
    """Pictures of a file, without the reduced copies that a TIFF may hold; the first one is sought."""
    if image.format == "MPO":
        return 1
    if image.format != "TIFF":
        return int(getattr(image, "n_frames", 1))
    full = []
    with suppress(EOFError):  # the last one; a small file may have a million
        for index in range(_MAX_FRAMES):
            try:
                image.seek(index)
            except SyntaxError as error:  # such as a mask of what is transparent
                reason = f"its page {index + 1} is of an unsupported kind ({error})"
                raise ImageError("image", f"{reason}; save its picture alone") from error
            if not int(image.tag_v2.get(_SUBFILE_TYPE, 0)) & 1:  # type: ignore[attr-defined]  # a TIFF's
                full.append(index)
    image.seek(full[0] if full else 0)
    tags = image.tag_v2  # type: ignore[attr-defined]  # a TIFF's
    stack = _STACK.match(str(tags.get(_DESCRIPTION, "")))
    count = int(stack[1] or stack[2]) if stack else 1
    return max(len(full), count, int(tags.get(_DEPTH, 1)))


def _has_many_scans(image: Image.Image) -> bool:
    """Whether a JPEG goes over its pixels again and again: a scan of a few bytes takes as long as any."""
    file = image.fp  # type: ignore[attr-defined]  # a file's
    at, count, last = file.tell(), 0, b""
    file.seek(0)
    while count <= _MAX_SCANS and (part := file.read(1 << 20)):
        count += (last + part).count(_SCAN)
        last = part[-1:]
    file.seek(at)
    return count > _MAX_SCANS


def _mend(image: Image.Image) -> None:
    """Have Pillow read a TIFF aright that is not loaded yet.

    It maps an uncompressed file by its upright size, which garbles one that is turned; and it takes the upper
    bytes of a palette, where there are none in files that have 8 bits.
    """
    if not isinstance(image, TiffImageFile) or not image.tile:
        return
    image.filename = ""  # what is not named is not mapped
    colours = image.tag_v2.get(_COLOUR_MAP, ())
    if image.mode == "P" and colours and max(colours) <= _UINT8_MAX:
        image.putpalette(np.reshape(colours, (3, -1)).T.astype(np.uint8).tobytes())


def _turn_upright(image: Image.Image) -> Image.Image:
    """The image as its orientation says; the same, not a copy, where it is upright."""
    is_turned = image.getexif().get(_ORIENTATION, 1) != 1
    return ImageOps.exif_transpose(image) if is_turned else image


def _find_raw_mode(image: Image.Image) -> str:
    """How the file stores its values, in Pillow's words such as I;16B; empty once they are decoded."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments or "")


@dataclass(frozen=True)
class _Samples:
    """Samples of more than 8 bits, upright.

    Attributes:
        values: [H, W] or [H, W, 3], as stored.
        own_white: white by the file's own word, None where it says nothing.
        is_inverted: whether the file counts from white.
        alpha: [H, W] uint8, None if all is opaque.
    """

    values: NDArray[np.generic]
    own_white: float | None = None
    is_inverted: bool = False
    alpha: NDArray[np.uint8] | None = None


def _read_samples(image: Image.Image) -> _Samples | None:
    """Samples of an image of more than 8 bits; None for one of 8.

    Raises:
        ImageError: if they cannot be read exactly, or are not numbers.
    """
    raw_mode, tags = _find_raw_mode(image), getattr(image, "tag_v2", {})
    if tags.get(_PLANAR) == _APART and max(tags.get(_BITS, (8,))) > 8:
        raise ImageError(
            "image", "its channels of more than 8 bits are stored apart; save them together"
        )
    if raw_mode.endswith(_COLOUR_16_BIT) and not image.mode.startswith("I"):
        return _read_colour(image, raw_mode)
    is_inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO  # Pillow turns 8 bits round itself
    is_signed_byte = image.mode == "L" and max(tags.get(_SAMPLE_FORMAT, (1,))) == _SIGNED
    if not (image.mode.startswith("I") or image.mode == "F" or is_signed_byte):
        return None
    values: NDArray[np.generic] = np.asarray(_turn_upright(image))
    if is_signed_byte:
        values = values.view(np.int8)
    elif raw_mode.startswith("I;16") and raw_mode.endswith("S"):
        values = values.astype(np.int16)
    elif raw_mode.startswith("I;32") and not raw_mode.endswith("S"):
        values = values.view(np.uint32)
    elif values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageError("image", "it holds values that are not numbers")
    return _Samples(values, _UINT12_MAX if raw_mode.endswith(";12") else None, is_inverted)


def _read_colour(image: Image.Image, raw_mode: str) -> _Samples:
    """Colour samples of 16 bits, of which Pillow keeps the upper byte: the file is decoded twice."""
    other = {
        "RGB;16B": "RGB;16L",
        "RGBA;16B": "RGBA;16L",
        "LA;16B": "RGBA",  # all four bytes of a pixel
        "RGB;16L": "RGB;16B",
        "RGBA;16L": "RGBA;16B",
        "RGB;16N": "RGB;16B" if sys.byteorder == "little" else "RGB;16L",
        "RGBA;16N": "RGBA;16B" if sys.byteorder == "little" else "RGBA;16L",
    }.get(raw_mode)
    file = getattr(image, "fp", None)
    if other is None or file is None:
        raise ImageError("image", f"16 bits a channel of the kind {raw_mode} are not supported")
    position = file.tell()
    file.seek(0)
    lower = Image.open(io.BytesIO(file.read()), formats=FORMATS)
    lower.seek(image.tell())
    file.seek(position)
    lower.tile = [
        tile._replace(args=other if isinstance(tile.args, str) else (other, *(tile.args or ())[1:]))
        for tile in lower.tile
    ]
    high, low = (np.asarray(_turn_upright(i)).astype(np.uint16) for i in (image, lower))
    if raw_mode.startswith("LA"):
        return _Samples(low[:, :, 0] << 8 | low[:, :, 1], alpha=low[:, :, 2].astype(np.uint8))
    alpha = high[:, :, 3].astype(np.uint8) if raw_mode.startswith("RGBA") else None
    return _Samples((high << 8 | low)[:, :, :3], alpha=alpha)


def _to_uint8(samples: _Samples, sample_range: SampleRange | None) -> NDArray[np.uint8]:
    """Samples as 0..255.

    Raises:
        ImageError: if their range cannot be known, or they are beyond the one that is given.
    """
    values = samples.values
    black, white = sample_range or _find_range(samples)
    low, high = float(values.min()), float(values.max())
    if not black - white:
        raise RangeError("image", f"black and white are both {black:g}")
    if math.isnan(black):
        reason = "its samples have more than 8 bits, which categories read over different ranges"
        raise RangeError("image", f"{reason}; name its category")
    least, most = min(black, white), max(black, white)
    slack = _FLOAT_SLACK * (most - least) if values.dtype.kind == "f" else 0.0
    if low < least - slack or high > most + slack:
        reason = f"its values of {low:g} to {high:g} are beyond {black:g} to {white:g}"
        raise RangeError("image", f"{reason}, the range of its category; {_REMEDY}")
    if sample_range:
        _doubt_depth(values, low, high, (least, most))
    scaled = (values.astype(np.float32) - np.float32(black)) * np.float32(
        _UINT8_MAX / (white - black)
    )
    grey = np.clip(np.rint(scaled), 0, _UINT8_MAX).astype(np.uint8)
    return _UINT8_MAX - grey if samples.is_inverted and black < white else grey


def _doubt_depth(values: NDArray[np.generic], low: float, high: float, range_: SampleRange) -> None:
    """Refuse an image that seems to be of a camera of fewer bits than its category's; not a black one.

    Either hardly 16 grey levels would be left of it, or it ends where such a camera burns out, which a darker
    image of the same camera does not.
    """
    least, most = range_
    is_white = least == 0 and most in _WHITES and high in _WHITES and high < most
    if is_white and np.count_nonzero(values == high) >= _BURNT_PX:
        reason = f"its brightest values are all {high:g}, the white of a camera of fewer bits"
    elif low < high < least + (most - least) / DARK:
        reason = f"its values of {low:g} to {high:g} are hardly any: under-exposed, or a camera of fewer bits"
    else:
        return
    remedy = "scale it, or name it as a category of its own"
    raise RangeError(
        "image", f"{reason}; its category is read over {least:g} to {most:g}: {remedy}"
    )


def _find_range(samples: _Samples) -> SampleRange:
    """Range of samples by their type alone.

    Raises:
        ImageError: if it does not follow from that.
    """
    kind, size = samples.values.dtype.kind, samples.values.dtype.itemsize
    low, high = float(samples.values.min()), float(samples.values.max())
    if kind == "f":
        if low < -_FLOAT_SLACK or high > 1 + _FLOAT_SLACK:
            raise RangeError("image", f"its values are floats of {low:g} to {high:g}; {_REMEDY}")
        return 0.0, 1.0
    if kind != "u" or size != 2:
        raise RangeError("image", f"its values are signed or of 32 bits; {_REMEDY}")
    if samples.own_white is not None:
        return 0.0, samples.own_white
    if 0 < high < _LEAST_16_BIT:  # a black one is left to validation
        bits = max(int(high).bit_length(), 8)
        reason = f"it looks like {bits} bits stored in 16: no value is above {high:g}"
        raise RangeError("image", f"{reason}; {_REMEDY}")
    return 0.0, float(FULL_WHITE)


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
    may_be_lossy = image.format == "WEBP"
    samples = _read_samples(image)
    image = _turn_upright(image)
    colours: NDArray[Any]
    alpha: NDArray[np.uint8] | None = None
    if samples is not None:
        colours, alpha = np.atleast_3d(samples.values), samples.alpha
        if samples.is_inverted:
            colours = colours.max() - colours
    elif image.mode in {"P", "L", "1"}:
        colours = np.atleast_3d(np.asarray(image))
    elif image.mode in {"LA", "PA", "RGBA"}:
        pixels = np.asarray(image.convert("RGBA"))
        colours, alpha = pixels[:, :, :3], pixels[:, :, 3]
    else:
        colours = np.asarray(image.convert("RGB"))
    levels = colours.max(axis=2)
    if alpha is not None and (alpha != alpha[:1, :1]).any():
        is_plain = (colours == colours[:1, :1]).all()
        levels = alpha if is_plain else np.where(alpha > 0, levels, 0)
    return levels, is_lossy or (may_be_lossy and bool(levels.max() > _UINT8_MAX / 2))


def _find_classes(levels: NDArray[np.generic], is_lossy: bool) -> NDArray[np.generic]:
    """Values of several classes of defects, sorted; empty if there is one class, soft edges, or noise.

    Small numbers are classes. A class has an interior: somewhere nine pixels of one value lie together,
    as they never do in the edge of a soft mask; or it is thin and lies alone, without another value
    around. Beside a single large value, such as that of borders left open, small numbers are classes if
    many of their pixels lie so; beside several, they are noise of compression.
    """
    values = np.unique(levels[levels != 0])
    if is_lossy or not 2 <= len(values) <= _MAX_CLASSES:
        return values[:0]
    if values[-1] <= _MAX_CLASSES:
        return values
    row = (levels[:, 2:] == levels[:, 1:-1]) & (levels[:, 1:-1] == levels[:, :-2])
    inner: NDArray[Any] = levels[1:-1, 1:-1]
    is_inner = row[2:] & row[1:-1] & row[:-2]
    is_inner &= (levels[2:, 1:-1] == inner) & (levels[:-2, 1:-1] == inner)
    found = {*np.unique(inner[is_inner & (inner > _NOISE)]).tolist(), *_find_lonely(levels, values)}
    is_small = (inner > 0) & (inner <= _NOISE)
    if is_small.any():
        is_noise = (values >= values[-1] - _NOISE).sum() > 1 or is_inner[is_small].mean() < _INNER
        return values[:0] if is_noise else values
    return values if len(found) >= 2 else values[:0]


def _find_lonely(levels: NDArray[Any], values: NDArray[Any]) -> list[float]:
    """Those of the values whose pixels, nearly all, have no other value than theirs and 0 around them."""
    height, width = levels.shape
    padded = np.pad(levels, 1)
    is_alone = levels != 0
    for top, left in np.ndindex(3, 3):
        around = padded[top : top + height, left : left + width]
        is_alone &= (around == levels) | (around == 0)
    found = []
    for value in values[values > _NOISE]:
        own = is_alone[levels == value]
        if len(own) >= _MIN_LONELY and own.mean() >= _LONELY:
            found.append(value.item())
    return found


_NO_IMAGE = "not an image that can be read; PNG, JPEG, BMP, TIFF and WebP can"


def _refuse_pipe(source: Path | str | bytes) -> None:
    """Refuse what would be waited for without end."""
    if isinstance(source, bytes):
        return
    path = Path(source)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ImageError(path, "it is a pipe or a device, not a file")


def _why_unidentified(source: Path | str | bytes) -> str:
    if isinstance(source, bytes):
        head = source[:_HEAD_BYTES]
    else:
        _refuse_pipe(source)
        with Path(source).open("rb") as file:
            head = file.read(_HEAD_BYTES)
    if not head:
        return "empty file"
    if head[:4] in _TIFF_MAGIC:
        return "a TIFF of a kind that is not supported, or damaged; save it with 8 or 16 bits a channel"
    kind = next((name for start, name in _OTHER_FORMATS if head.startswith(start)), "")
    if kind := "HEIF or AVIF" if head[4:] == b"ftyp" else kind:
        return f"a file of the format {kind}, which is not read; PNG, JPEG, BMP, TIFF and WebP are"
    return _NO_IMAGE
