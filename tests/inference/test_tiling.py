"""Tiles: they cover the image, their seams do not show, and a defect across one is found once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onenip.errors import DataError
from onenip.inference.tiling import TiledDetector, list_tiles
from tests.paths import SHARED
from tests.tiny import SIZE, draw_normal

TILE = SIZE
REAL = SHARED / "data/inspection/bottle"


def draw_big(seed: int) -> np.ndarray:
    """Stripes of 3 x 3 tiles, [192, 192, 3] uint8."""
    rng = np.random.default_rng(seed)
    x = np.arange(3 * SIZE, dtype=np.float32)
    value = np.tile(128 + 70 * np.sin((x + rng.uniform(0, 6)) * 0.8), (3 * SIZE, 1))
    tinted = value[:, :, None] * np.array([0.6, 0.9, 1.0])
    return np.clip(tinted + rng.normal(0, 6, tinted.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def tiled(tiny_detector):
    normals = [draw_big(seed) for seed in range(10)]
    return TiledDetector.from_normals(tiny_detector, "stripes", normals, tile_px=TILE, overlap=0.5)


@pytest.mark.parametrize("size", [(64, 64), (65, 200), (500, 333), (20, 300)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.75])
def test_tiles_cover_the_image_and_overlap(size, overlap):
    """Every pixel lies in a tile, none sticks out, and neighbours share what was asked for."""
    seen = np.zeros(size, int)
    boxes = list_tiles(size, TILE, overlap)
    for y, x, height, width in boxes:
        assert 0 <= y <= y + height <= size[0]
        assert 0 <= x <= x + width <= size[1]
        seen[y : y + height, x : x + width] += 1

    assert seen.min() >= 1
    columns = sorted({x for _, x, _, _ in boxes})
    assert all(
        after - before <= TILE * (1 - overlap) + 1 for before, after in itertools.pairwise(columns)
    )


@pytest.mark.parametrize("center", [(96, 96), (128, 64), (64, 128), (30, 100)])
def test_a_defect_across_a_seam_is_found_once(tiled, center):
    """A spot on the corner of four tiles is one region, where it is."""
    image = draw_big(9)
    y, x = np.mgrid[: 3 * SIZE, : 3 * SIZE]
    image[np.hypot(y - center[0], x - center[1]) < 9] = (200, 20, 20)

    found = tiled.predict([image], category="stripes")[0]

    assert found.is_anomalous
    assert found.map.shape == (192, 192)
    near = [
        r
        for r in found.regions
        if r.x <= center[1] <= r.x + r.width and r.y <= center[0] <= r.y + r.height
    ]
    assert len(near) == 1
    assert near[0] == found.regions[0]


def test_normal_images_stay_normal(tiled):
    """A further normal image scores about as those that the threshold comes from."""
    found = tiled.predict([draw_big(seed) for seed in range(20, 26)])

    assert sum(one.is_anomalous for one in found) <= 1
    assert all(one.category == "stripes" and one.category_inferred for one in found)


def test_tiles_are_calibrated_where_they_are_judged(tiny_detector):
    """A part in the middle of each image, which is whole in no tile side by side, is normal."""

    def draw(seed):
        part = draw_normal("disc", np.random.default_rng(seed))
        return np.pad(
            part, ((SIZE // 2, SIZE // 2), (SIZE // 2, SIZE // 2), (0, 0)), mode="reflect"
        )

    normals = [draw(seed) for seed in range(8)]
    tiled = TiledDetector.from_normals(tiny_detector, "part", normals, tile_px=TILE, overlap=0.5)

    found = tiled.predict([draw(seed) for seed in range(20, 26)], category="part")

    assert sum(one.score > one.threshold for one in found) <= 1


def test_a_tile_of_the_whole_image_is_the_image(tiny_detector):
    """An image no larger than a tile is judged as without tiles."""
    image = draw_normal("disc", np.random.default_rng(3))

    whole = tiny_detector.predict([image], category="disc")[0]
    found = TiledDetector(tiny_detector, tile_px=TILE).predict([image], category="disc")[0]

    assert found.score == pytest.approx(whole.score, abs=1e-4)
    assert np.abs(found.map - whole.map).max() < 1e-4
    assert found.threshold == whole.threshold


def test_the_batch_does_not_matter(tiled):
    """Maps of an image are equal, to the last bit, alone and among others."""
    images = [draw_big(30), draw_big(31)]

    together = tiled.predict(images)
    alone = [tiled.predict([image])[0] for image in images]

    for one, two in zip(together, alone, strict=True):
        assert one.score == two.score
        assert np.array_equal(one.map, two.map)


@pytest.mark.parametrize("side", [100, 128])
@pytest.mark.parametrize("photographs", [1, 4])
def test_tiles_of_one_photograph_do_not_calibrate_each_other(tiny_detector, side, photographs):
    """A tile scores in calibration as with a model of the other photographs alone, or of tiles beside it.

    At 100 px the tiles of 64 px lie over each other by 28 px, at 128 px side by side.
    """
    normals = [draw_big(seed)[:side, :side] for seed in range(photographs)]
    tiled = TiledDetector.from_normals(tiny_detector, "stripes", normals, tile_px=TILE, overlap=0.0)
    scores = tiled.detector.spec.categories["stripes in tiles"].held_out_scores

    with_itself = [
        one.score for one in tiled.detector.predict(
            [normal[y : y + TILE, x : x + TILE] for normal in normals
             for y in (0, side - TILE) for x in (0, side - TILE)],
            category="stripes in tiles",
        )
    ]  # fmt: skip

    if photographs == 1 and side == 100:
        assert len(scores) == 16  # shifted copies: all four tiles lie over each other
    else:
        assert len(scores) == len(with_itself) == 4 * photographs
        assert np.mean(scores) > np.mean(with_itself)
        assert all(own >= again - 1e-4 for own, again in zip(scores, with_itself, strict=True))


def test_what_makes_no_tiles_is_refused(tiny_detector):
    """Impossible tiles, no normals and an unknown category are DataErrors."""
    with pytest.raises(DataError, match=r"0\.\.0\.75"):
        TiledDetector(tiny_detector, tile_px=64, overlap=0.9)
    with pytest.raises(DataError, match="normal images"):
        TiledDetector.from_normals(tiny_detector, "disc", [], tile_px=64)
    with pytest.raises(DataError, match="unknown category"):
        TiledDetector(tiny_detector, tile_px=64).predict([draw_big(0)], category="nut")


def test_tiles_from_the_command_line(tiny_model, tmp_path):
    """`--tile` takes its prompts and thresholds from `--tile-normals`, and insists on them."""
    import json

    from PIL import Image
    from typer.testing import CliRunner

    from onenip.cli import app

    (tmp_path / "normals").mkdir()
    for seed in range(3):
        Image.fromarray(draw_big(seed)).save(tmp_path / "normals" / f"{seed}.png")
    Image.fromarray(draw_big(9)).save(tmp_path / "big.png")
    command = [
        "predict",
        str(tmp_path / "big.png"),
        "--model",
        str(tiny_model),
        "--tile",
        str(TILE),
    ]

    refused = CliRunner().invoke(app, command)
    done = CliRunner().invoke(
        app, [*command, "-c", "stripes", "--tile-normals", str(tmp_path / "normals")]
    )

    assert isinstance(refused.exception, DataError)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["category"] == "stripes"


@pytest.mark.slow
def test_an_exported_file_tiles_by_itself(tiny_model, tiled, tmp_path):
    """`onenip export --tile` writes a file that answers big images as the tiled detector does."""
    from PIL import Image
    from typer.testing import CliRunner

    from onenip.cli import app
    from onenip.inference.edge import EdgeDetector

    (tmp_path / "normals").mkdir()
    for seed in range(10):
        Image.fromarray(draw_big(seed)).save(tmp_path / "normals" / f"{seed}.png")
    out = tmp_path / "tiled.onnx"
    done = CliRunner().invoke(
        app,
        ["export", str(tiny_model), "--out", str(out), "-c", "stripes",
         "--tile", str(TILE), "--overlap", "0.5", "--tile-normals", str(tmp_path / "normals")],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    image = draw_big(9)
    y, x = np.mgrid[: 3 * SIZE, : 3 * SIZE]
    image[np.hypot(y - 128, x - 64) < 9] = (200, 20, 20)
    wanted = tiled.predict([image], category="stripes")[0]

    found = EdgeDetector.load(out).predict([image])[0]

    assert found.category == "stripes"
    assert found.threshold == wanted.threshold
    assert found.score == pytest.approx(wanted.score, abs=1e-3)
    assert (
        np.abs(found.map - wanted.map).max() < 5e-3
    )  # one pixel in thousands; most differ by 1e-5
    assert found.is_anomalous == wanted.is_anomalous


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the shared images")
def test_a_scratch_across_a_seam_of_a_real_image_is_found_once(tiny_detector):
    """On an enlarged photo of a bottle, a scratch over the seam of tiles is one region."""
    from PIL import Image

    def enlarge(path):
        with Image.open(path) as image:
            return np.array(image.convert("RGB").resize((384, 384)))

    normals = [enlarge(path) for path in sorted((REAL / "train/good").iterdir())[:10]]
    tiled = TiledDetector.from_normals(tiny_detector, "bottle", normals, tile_px=192, overlap=0.5)
    image = enlarge(sorted((REAL / "test/good").iterdir())[-1])
    y, x = np.mgrid[:384, :384]
    image[(abs(y - 192) < 10) & (abs(x - 192) < 40)] = (235, 30, 30)

    found = tiled.predict([image], category="bottle")[0]

    hits = [
        r
        for r in found.regions
        if r.x < 232 and r.x + r.width > 152 and r.y < 202 and r.y + r.height > 182
    ]
    assert found.is_anomalous
    assert len(hits) == 1
