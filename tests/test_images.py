import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from onenip.errors import ImageError
from onenip.images import hash_file, load_image, load_mask, resize_image

RAMP = np.linspace(0, 255, 48).astype(np.uint8).reshape(6, 8)


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_every_mode_becomes_rgb(mode):
    """Any colour mode becomes three channels of bytes of the same size."""
    rgb = load_image(encode(Image.fromarray(RAMP).convert(mode)))

    assert rgb.shape == (6, 8, 3)
    assert rgb.dtype == np.uint8


def test_grey_is_repeated():
    """A grey image has its values in all channels, bit for bit."""
    rgb = load_image(encode(Image.fromarray(RAMP)))

    assert (rgb == RAMP[:, :, None]).all()


def test_sixteen_bits_scale_over_their_full_range():
    """A 16-bit image is the 8-bit one, as near as 8 bits come."""
    rgb = load_image(encode(Image.fromarray(RAMP.astype(np.uint16) * 257)))

    assert (rgb == RAMP[:, :, None]).all()


@pytest.mark.parametrize("scale", [1.0, 1 / 255])
def test_float_tiff_in_bytes_or_fractions(scale):
    """A float TIFF in 0..255 or in 0..1 gives the same pixels."""
    values = Image.fromarray(RAMP.astype(np.float32) * np.float32(scale))

    assert (load_image(encode(values, "TIFF")) == RAMP[:, :, None]).all()


def test_float_without_a_value_is_black():
    """NaN in a float image is black rather than undefined."""
    values = RAMP.astype(np.float32)
    values[2, 3] = np.nan

    assert (load_image(encode(Image.fromarray(values), "TIFF"))[2, 3] == 0).all()


def test_cmyk_is_converted():
    """A CMYK JPEG becomes its colour, not its inverse."""
    red = Image.new("RGB", (16, 16), (220, 30, 30)).convert("CMYK")

    r, g, b = load_image(encode(red, "JPEG", quality=95)).mean(axis=(0, 1))
    assert r > 180 > 90 > max(g, b)


def test_transparency_is_black():
    """What is transparent shows black, whatever colour lies under it."""
    clear = Image.new("RGBA", (4, 4), (200, 100, 50, 0))

    assert (load_image(encode(clear)) == 0).all()


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(orientation, turns):
    """A photo of a turned camera comes out upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation

    rgb = load_image(encode(Image.fromarray(RAMP), exif=exif))

    assert (rgb[:, :, 0] == np.rot90(RAMP, turns)).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "MPO"])
def test_first_picture_of_several(kind):
    """A file of several pictures gives its first."""
    first, second = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black")

    rgb = load_image(encode(first, kind, save_all=True, append_images=[second]))

    assert rgb.shape == (8, 8, 3)
    assert rgb.min() > 250


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty file"), (b"<html></html>", "not an image"), (None, "cannot be decoded")],
    ids=["empty", "html", "truncated"],
)
def test_unusable_files_name_their_reason(tmp_path, content, reason):
    """An empty, foreign or cut file is an error that names file and reason."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / "naïve name.png"
    whole = encode(Image.fromarray(noise))
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)

    with pytest.raises(ImageError, match=f"naïve name.png: {reason}"):
        load_image(path)


def test_missing_file_and_too_many_pixels(tmp_path):
    """A missing file, and one of too many pixels, are told apart."""
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "no.png")
    with pytest.raises(ImageError, match="8x6 px is more than 40 pixels"):
        load_image(encode(Image.fromarray(RAMP)), max_pixels=40)


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "TIFF", "BMP", "WEBP"]),
    hits=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
    keep=st.floats(0, 1),
)
def test_damaged_bytes_never_crash(kind, hits, keep):
    """Any damage ends in pixels or in an ImageError."""
    content = bytearray(encode(Image.fromarray(RAMP), kind))
    for position, value in hits:
        content[int(position * len(content))] = value
    content = content[: int(keep * len(content))]
    try:
        rgb = load_image(bytes(content), max_pixels=10_000)
    except ImageError:
        return

    assert rgb.dtype == np.uint8
    assert rgb.shape[2] == 3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("value", [1, 255])
def test_mask_counts_any_value(dtype, value):
    """Masks of 0/1 and of 0/255 mean the same, in 8 and in 16 bits."""
    mask = np.zeros((5, 7), bool)
    mask[1:3, 2:6] = True

    assert (load_mask(encode(Image.fromarray(mask.astype(dtype) * dtype(value)))) == mask).all()


def test_resize_keeps_what_fits_and_means():
    """Same size: the same array; smaller: the same mean."""
    image = np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8)
    small = resize_image(image, (24, 32))

    assert resize_image(image, (96, 64)) is image
    assert small.shape == (24, 32, 3)
    assert abs(small.mean() - image.mean()) < 1


def test_hash_is_sha256(tmp_path):
    """The hash of an empty file is the known one."""
    (tmp_path / "x").write_bytes(b"")

    assert hash_file(tmp_path / "x").startswith("e3b0c44298fc1c149afbf4c8996fb924")
