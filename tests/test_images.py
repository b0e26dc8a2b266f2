import io
import os
import struct
import zlib
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from onenip.errors import ImageError
from onenip.images import (
    explain_suffix,
    hash_file,
    load_image,
    load_mask,
    load_mask_classes,
    load_preview,
    read_size,
    resize_image,
    shows_nothing,
    to_rgb,
)
from tests.drill import damage
from tests.paths import CASES

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


@pytest.mark.parametrize("overshoot", [1.0, 1.001])
def test_floats_are_read_as_fractions(overshoot):
    """A float TIFF of 0..1, even with a little more, gives the pixels of the 8-bit image."""
    values = Image.fromarray(RAMP.astype(np.float32) / np.float32(255 / overshoot))

    found = load_image(encode(values, "TIFF"))

    assert np.abs(found - RAMP[:, :, None].astype(int)).max() <= (overshoot > 1)


def write_png16(channels, values):
    """A PNG of 16 bits a channel, which Pillow itself writes in grey only."""
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    pixels = np.broadcast_to(values[:, :, None], (*values.shape, channels)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(name, body):
        end = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + end

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_few_bits_in_sixteen_are_refused(channels, bits):
    """Nothing says whether such an image is dark or of a camera of fewer bits: it is no 14 grey levels."""
    values = RAMP.astype(np.uint16) * (2**bits - 1) // 255

    with pytest.raises(ImageError, match="bits stored in 16"):
        load_image(write_png16(channels, values))
    full = load_image(write_png16(channels, np.full_like(values, 65535)))
    assert full.min() == 255


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (RAMP.astype(np.float32), "floats of 0 to 255"),
        (RAMP.astype(np.float32) - 300, "floats of -300 to -45"),
        (np.full((6, 8), np.nan, np.float32), "not numbers"),
        (RAMP.astype(np.int32), "signed or of 32 bits"),
        (RAMP.astype(np.int16) - 20, "signed or of 32 bits"),
    ],
    ids=["float bytes", "negative floats", "nan", "int32", "int16"],
)
def test_values_of_unknown_range_are_refused(values, reason):
    """Floats beyond 0..1, NaN, signed and 32-bit integers are no image until somebody says their range."""
    image = Image.fromarray(values.astype(np.int32) if values.dtype == np.int16 else values)

    with pytest.raises(ImageError, match=reason):
        load_image(encode(image, "TIFF"))
    with pytest.raises(ImageError, match=reason):
        to_rgb(image)


def test_white_is_zero():
    """A 16-bit TIFF that counts from white shows the same scene as the one that counts from black."""
    values = Image.fromarray(65535 - RAMP.astype(np.uint16) * 257)

    found = load_image(encode(values, "TIFF", tiffinfo={262: 0}))

    assert (found == RAMP[:, :, None]).all()


def test_cmyk_is_converted():
    """A CMYK JPEG becomes its colour, not its inverse."""
    red = Image.new("RGB", (16, 16), (220, 30, 30)).convert("CMYK")

    r, g, b = load_image(encode(red, "JPEG", quality=95)).mean(axis=(0, 1))
    assert r > 180 > 90 > max(g, b)


def test_transparency_is_black():
    """What is transparent shows black, whatever colour lies under it; an alpha of one value says nothing."""
    pixels = np.full((4, 4, 4), (200, 100, 50, 0), np.uint8)
    assert (load_image(encode(Image.fromarray(pixels))) == (200, 100, 50)).all()
    assert load_mask(encode(Image.fromarray(pixels))).all()

    pixels[0, 0, 3] = 255
    shown = load_image(encode(Image.fromarray(pixels)))

    assert (shown[0, 0] == (200, 100, 50)).all()
    assert shown.sum() == 350


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(orientation, turns):
    """A photo of a turned camera comes out upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation

    rgb = load_image(encode(Image.fromarray(RAMP), exif=exif))

    assert (rgb[:, :, 0] == np.rot90(RAMP, turns)).all()


def test_a_reduced_copy_before_the_picture_is_passed_over():
    """Of a TIFF whose first page is a thumbnail the picture is taken, whatever its depth."""
    for pixels in (RAMP, RAMP.astype(np.uint16) * 257):
        picture, buffer = Image.fromarray(pixels), io.BytesIO()
        with TiffImagePlugin.AppendingTiffWriter(buffer, True) as pages:
            picture.resize((8, 8)).save(pages, "TIFF", tiffinfo={254: 1})
            pages.newFrame()
            picture.save(pages, "TIFF")
            pages.newFrame()

        assert (load_image(buffer.getvalue()) == RAMP[:, :, None]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3), (8, 1)])
def test_a_turned_tiff_is_the_same_from_a_file_and_from_bytes(orientation, turns, dtype, tmp_path):
    """Uncompressed, too, where Pillow maps the file."""
    path, values = tmp_path / "turned.tif", RAMP.astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    tifffile.imwrite(path, values, extratags=[(274, "H", 1, orientation, True)])

    for source in (path, path.read_bytes()):
        assert (load_image(source) == np.rot90(RAMP, turns)[:, :, None]).all()
        assert (load_mask(source) == load_mask(path.read_bytes())).all()
        assert read_size(source) == np.rot90(RAMP, turns).shape
    assert (to_rgb(Image.open(path)) == load_image(path)).all()


def test_a_palette_of_eight_bits_in_a_tiff_is_not_black():
    """Some programs write its colours as 0..255, where the format says 0..65535."""
    stream = io.BytesIO()
    colours = np.tile(np.arange(256, dtype=np.uint16), (3, 1))
    tifffile.imwrite(stream, RAMP, photometric="palette", colormap=colours)

    assert (load_image(stream.getvalue()) == RAMP[:, :, None]).all()


@pytest.mark.parametrize(
    "options",
    [{"imagej": True, "truncate": True}, {"truncate": True}, {"volumetric": True, "tile": (16, 16, 16)}],
    ids=["ImageJ", "tifffile", "a volume"],
)  # fmt: skip
def test_pictures_behind_the_only_page_of_a_tiff_are_frames(options):
    """A stack that has one page is not read as its first picture."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.stack([RAMP] * 16), **options)

    with pytest.raises(ImageError, match="it holds 16 frames"):
        load_image(stream.getvalue())


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused(kind):
    """Neither the first alone is judged, nor is it silently chosen."""
    first, second = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black")
    content = encode(first, kind, save_all=True, append_images=[second])

    with pytest.raises(ImageError, match="it holds 2 frames"):
        load_image(content)


def test_noise_alone_shows_nothing():
    """However bright and coloured; a faint pattern is something."""
    noise = np.random.default_rng(0).integers(90, 99, (16, 16, 3)).astype(np.uint8)

    assert shows_nothing(noise)
    assert shows_nothing(noise + np.array([0, 40, 80], np.uint8))
    noise[4, 4] = 110
    assert not shows_nothing(noise)


def test_a_pipe_is_not_waited_for(tmp_path):
    """A command that walks a folder goes on."""
    os.mkfifo(tmp_path / "pipe.png")

    with pytest.raises(ImageError, match="a pipe or a device"):
        load_image(tmp_path / "pipe.png")
    assert "does not end as" in explain_suffix(tmp_path / "pipe.png")


def test_a_range_that_is_turned_round_is_not_turned_twice():
    """Where white is zero, a declared range says so as well as the file."""
    samples, stream = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8), io.BytesIO()
    tifffile.imwrite(stream, samples, photometric="miniswhite")

    by_file = load_image(stream.getvalue(), sample_range=(0, 4095))
    by_range = load_image(stream.getvalue(), sample_range=(4095, 0))

    assert by_file[0, 0, 0] == 255
    assert abs(by_file.astype(int) - by_range).max() <= 1


def test_a_page_of_an_unsupported_kind_is_named():
    """A TIFF that keeps transparency in a page of its own says so, instead of a decoder's words."""
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        file.write(np.full((8, 8, 3), 90, np.uint8), photometric="rgb")
        file.write(np.ones((8, 8), bool), photometric=4, subfiletype=4)

    with pytest.raises(ImageError, match="its page 2 is of an unsupported kind"):
        load_image(stream.getvalue())


def test_the_primary_picture_of_a_multi_picture_jpeg():
    """What phones add to a JPEG is no second image."""
    first, second = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black")

    assert load_image(encode(first, "MPO", save_all=True, append_images=[second])).min() > 250


CASE_REASONS = {
    "float-and-int32-tiff/float4095.tif": "floats of",
    "float-and-int32-tiff/float65535.tif": "floats of",
    "float-and-int32-tiff/int32_0_255.tif": "signed or of 32 bits",
    "mono12-in-16-bit/mono10.png": "looks like 10 bits",
    "mono12-in-16-bit/mono12.png": "looks like 12 bits",
    "mono12-in-16-bit/mono12.tif": "looks like 12 bits",
    "several-frames/two_pages.tif": "2 frames",
    "tiff-not-an-image/float64.tif": "a TIFF of a kind that is not supported",
    "tiff-not-an-image/grey_alpha_16.tif": "a TIFF of a kind that is not supported",
    **{
        f"poison-formats/{p.name}": "HEIF or AVIF" if "AVIF" in p.name else "not an image that"
        for p in CASES.glob("poison-formats/*.bin")
    },
}


@pytest.mark.parametrize("name", CASE_REASONS)
def test_what_cannot_be_scaled_or_opened_says_why(name):
    """Files that cameras and strangers delivered, whatever their names: an ImageError with its reason."""
    with pytest.raises(ImageError, match=CASE_REASONS[name]):
        load_image(CASES / name)


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


def test_small_files_that_take_hours_are_refused():
    """A JPEG that scans its pixels 100 times, in 64 bytes each, and a TIFF of 20,000 pages in a megabyte."""
    jpeg = encode(Image.fromarray(RAMP).resize((640, 480)), "JPEG", progressive=True)
    scan = jpeg[jpeg.rfind(b"\xff\xda") : -2]
    tiff = bytearray(encode(Image.fromarray(RAMP), "TIFF"))
    at = struct.unpack_from("<I", tiff, 4)[0]
    size = 2 + 12 * struct.unpack_from("<H", tiff, at)[0]
    page = tiff[at : at + size]
    for _ in range(20_000):
        struct.pack_into("<I", tiff, at + size, len(tiff))
        at = len(tiff)
        tiff += page + bytes(4)

    with pytest.raises(ImageError, match="more than 64 scans"):
        load_image(jpeg[:-2] + scan * 100 + jpeg[-2:])
    with pytest.raises(ImageError, match="100 frames"):
        load_image(bytes(tiff))
    assert load_image(jpeg).shape == (480, 640, 3)


@pytest.mark.parametrize("size", [(1, 300_000), (300_000, 1)])
def test_an_image_of_one_line_is_refused(size):
    """Each row costs memory: a file of 200 KB with 100,000,000 of them took 3.4 GB."""
    stream = io.BytesIO()
    Image.new("1", size).save(stream, "PNG")

    for read in (load_image, load_mask, read_size, load_preview):
        with pytest.raises(ImageError, match="a side of more than 262144 pixels"):
            read(stream.getvalue())


@pytest.mark.drill
@pytest.mark.parametrize(
    "kind",
    ["PNG", "PNG 16", "JPEG", "TIFF", "TIFF 16", "TIFF float", "BMP", "WEBP", "MPO", "GIF", "DDS", "ICNS",
     "TGA"],
)  # fmt: skip
def test_two_thousand_damaged_files_end_in_an_image_error(kind, drill):
    """Bytes changed or cut anywhere, in wanted and unwanted formats, end in pixels or in an ImageError."""
    rng = drill.draw()
    image, (name, _, depth) = Image.fromarray(RAMP).resize((32, 32)), kind.partition(" ")
    if depth:
        deep = np.asarray(image.convert("L")).astype(np.uint16) * 16
        image = Image.fromarray(deep / np.float32(4096) if depth == "float" else deep)
    whole = encode(image if depth else image.convert("RGB"), name)
    count = drill.choose(160, 4000)
    drill.note("damaged images of thirteen formats", count)
    for _ in range(count):
        content = damage(whole, rng)
        for load in (load_image, partial(load_image, sample_range=(0, 4095)), load_mask):
            with suppress(ImageError):
                load(content, max_pixels=100_000)


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


SQUARE = np.zeros((16, 16), bool)
SQUARE[4:12, 4:12] = True


def classes(*values):
    """Mask of one square a class."""
    levels = np.zeros((16, 16 * len(values)), np.uint8)
    for index, value in enumerate(values):
        levels[4:12, 16 * index + 4 : 16 * index + 12] = value
    return levels


@pytest.mark.parametrize(
    "values", [(1, 2, 3), (1, 2), (64, 128, 255), (255, 254, 253)], ids=lambda v: str(v)
)
def test_every_class_of_a_mask_counts(values):
    """Masks of classes, in small numbers or in shades, lose none; the classes are named."""
    content = encode(Image.fromarray(classes(*values)))

    assert (load_mask(content) == (classes(*values) > 0)).all()
    assert load_mask_classes(content) == sorted(values)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_a_soft_mask_counts_from_half_of_its_range(kind):
    """Blurred edges, and JPEG's noise around them, do not make a defect larger."""
    soft = Image.fromarray(SQUARE.astype(np.uint8) * 255).resize((160, 160), Image.BILINEAR)
    hard = np.asarray(soft) > 127

    found = load_mask(encode(soft, kind, **({"quality": 70} if kind == "JPEG" else {})))

    assert (found != hard).mean() < 0.01
    assert load_mask_classes(encode(soft, kind)) == []
    empty = Image.fromarray(np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8))
    assert not load_mask(encode(empty, "JPEG")).any()


@pytest.mark.parametrize(
    ("kind", "quality"), [("WEBP", 60), ("WEBP", 90), ("JPEG", 95), ("JPEG", 100)]
)
def test_what_compression_leaves_is_no_class(kind, quality):
    """Values around black and around white, in areas, also where a JPEG was saved as PNG since."""
    large = Image.fromarray(np.kron(SQUARE, np.ones((9, 9), bool)).astype(np.uint8) * 255)
    packed = encode(large.convert("RGB"), kind, quality=quality)

    for content in (packed, encode(Image.open(io.BytesIO(packed))))[: 1 + (kind == "JPEG")]:
        assert load_mask_classes(content) == []
        assert np.mean(load_mask(content) != (np.asarray(large) > 0)) < 0.003


@pytest.mark.parametrize("width", [1, 2])
def test_a_thin_class_is_not_lost_beside_a_large_one(width):
    """A scratch of another value than the block is no soft edge, since it touches nothing."""
    mask = np.zeros((40, 40), np.uint8)
    mask[4:20, 4:20] = 255
    mask[30 : 30 + width, 5:35] = 60

    assert (load_mask(encode(Image.fromarray(mask))) == (mask > 0)).all()
    assert load_mask_classes(encode(Image.fromarray(mask))) == [60, 255]


def test_a_border_left_open_does_not_hide_the_class():
    """1 is the defect, and 255 its border: both count; single pixels of 1 and 2 beside 255 are noise."""
    mask = np.pad(np.ones((8, 8), np.uint8), 1, constant_values=255)
    noise = np.random.default_rng(0).integers(0, 3, (64, 64), np.uint8)

    assert load_mask(encode(Image.fromarray(np.pad(mask, 3)))).sum() == 100
    noise[9:19, 9:19] = 255
    assert load_mask(encode(Image.fromarray(noise))).sum() == 100


@pytest.mark.parametrize("background", ["black", "white"])
def test_the_index_of_a_palette_counts(background):
    """Whatever colours it has: all black, or a white background."""
    image = Image.fromarray(SQUARE.astype(np.uint8), "P")
    image.putpalette([0] * 6 if background == "black" else [255, 255, 255, 0, 0, 0])

    assert (load_mask(encode(image)) == SQUARE).all()


def test_alpha_counts_where_the_colour_is_constant():
    """White everywhere and drawn in alpha, or drawn in colour and opaque: the same mask."""
    drawn = np.full((16, 16, 4), 255, np.uint8)
    drawn[:, :, 3] = SQUARE * 255
    opaque = np.full((16, 16, 4), 255, np.uint8)
    opaque[:, :, :3] = SQUARE[:, :, None] * [255, 0, 0]

    assert (load_mask(encode(Image.fromarray(drawn))) == SQUARE).all()
    assert (load_mask(encode(Image.fromarray(opaque))) == SQUARE).all()


@pytest.mark.parametrize(
    "path",
    sorted(CASES.glob("mask-*/**/ground_truth/*/000*")),
    ids=lambda p: p.relative_to(CASES).parts[0],
)
def test_masks_as_people_deliver_them(path):
    """The same defect of 49 px in each: as JPEG, soft, in alpha, in a palette; the inverted one is seen."""
    coverage = load_mask(path).mean()

    assert coverage == pytest.approx(0.952 if "inverted" in str(path) else 0.0478, abs=0.005)


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
